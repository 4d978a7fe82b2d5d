"""Small dataset trees, as the tests of the readers build them."""

from tests.data.conftest import build_voc_fixture, save_jpeg_fixture

__all__ = ["build_voc_fixture", "save_jpeg_fixture"]
