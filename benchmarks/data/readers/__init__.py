"""Dataset layouts: VOC, COCO, NUS-WIDE, arrays, CSV tables."""
