"""The official archives of the datasets: addresses, sizes and checksums, and how to get them.

Sizes and SHA-256 of COCO's archives and the sizes of VOC's are those of TensorFlow Datasets
(`tensorflow_datasets/url_checksums/{coco,voc}.txt`), the MD5 of VOC's are those of torchvision
(`torchvision/datasets/voc.py`), whose address on `thor` is tried first.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data.archives.download import fetch, have
from benchmarks.data.archives.unpack import need, unpack
from benchmarks.data.disk import amount, exclusive
from methods.errors import UserError, nearest
from results.files import atomic_write_bytes


@dataclass(frozen=True)
class Archive:
    """One official file.

    Attributes:
        urls: addresses of the same bytes; the first that delivers is used.
        size: size in bytes.
        checksum: "md5:" or "sha256:" and the hexadecimal digest.
        unpacks: folder of its content, relative to the dataset's folder.
        unpacked: approximate size of the content in bytes; photographs do not get smaller in an archive.
    """

    urls: tuple[str, ...]
    size: int
    checksum: str
    unpacks: str
    unpacked: int

    @property
    def name(self) -> str:
        """The file's name."""
        return self.urls[0].rsplit("/", 1)[1]


def _voc(file: str, size: int, md5: str) -> Archive:
    year = file.rsplit("-", 1)[1].removesuffix(".tar")
    folders = ("https://thor.robots.ox.ac.uk/pascal/VOC", "http://host.robots.ox.ac.uk/pascal/VOC")
    urls = tuple(f"{folder}/voc{year}/{file}" for folder in folders)
    return Archive(urls, size, f"md5:{md5}", f"VOCdevkit/VOC{year}", size)


def _coco(file: str, size: int, sha256: str, unpacks: str, unpacked: int) -> Archive:
    # Two names of one S3 bucket; the first has no valid certificate, but the checksum protects the content.
    folders = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")
    urls = tuple(f"{folder}/{file}" for folder in folders)
    return Archive(urls, size, f"sha256:{sha256}", unpacks, unpacked)


ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "voc2007": (
        _voc("VOCtrainval_06-Nov-2007.tar", 460_032_000, "c52e279531787c972589f7e41ab4ae64"),
        _voc("VOCtest_06-Nov-2007.tar", 451_020_800, "b6e924de25625d8de591ea690078ad9f"),
    ),
    "voc2012": (_voc("VOCtrainval_11-May-2012.tar", 1_999_639_040, "6cd6e144f989b92b3379bac3b3de84fd"),),
    "coco2014": (
        _coco(
            "zips/train2014.zip",
            13_510_573_713,
            "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
            "train2014",
            13_600_000_000,
        ),
        _coco(
            "zips/val2014.zip",
            6_645_013_297,
            "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
            "val2014",
            6_700_000_000,
        ),
        _coco(
            "annotations/annotations_trainval2014.zip",
            252_872_794,
            "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
            "annotations",
            900_000_000,
        ),
    ),
}

_BY_HAND = {
    # The owners send the images on request: there is no public download.
    "nuswide": "mkdir -p {root}; put the four arrays formatted_{{train,val}}_{{images,labels}}.npy "
    "of https://zenodo.org/records/10162606 (or of the folder linked in data/README of "
    "JiahaoXxX/SSMLL-D2L_MAT) or the official text files (ImageList, Groundtruth and ConceptsList, "
    "unpacked) into {root}; ask for the images (Flickr.zip) at "
    "https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html "
    "and run: unzip -q Flickr.zip -d {root}",
}


def commands(name: str, root: Path) -> str:
    """The shell commands that download a dataset, on one line.

    Args:
        name: the dataset.
        root: its folder.

    Returns:
        The commands with the folder quoted; empty for a dataset without official archives.
    """
    place = shlex.quote(str(root))
    if name not in ARCHIVES:
        return _BY_HAND.get(name, "").format(root=place)
    each = []
    for archive in ARCHIVES[name]:
        unpack = "unzip -q" if archive.name.endswith(".zip") else "tar -xf"
        each.append(f"curl -fLO -C - {archive.urls[0]} && {unpack} {archive.name}")
    return (
        f"mkdir -p {place} && cd {place} && {' && '.join(each)}"
        f"  # or: python benchmarks/run.py prepare {name} --root {place} --download"
    )


def download(
    name: str,
    root: Path,
    *,
    progress: Callable[[str], Callable[[int, int], None]],
    announce: Callable[[str], None] = lambda line: None,
) -> None:
    """Download a dataset's official archives into its folder, check and unpack them.

    After a killed call the next one continues. Archives that are already there are checked and used; they are
    kept afterwards.

    Args:
        name: the dataset.
        root: its folder; created if needed.
        progress: makes a (done, total) callback from a title; the unit is MiB.
        announce: called with one-line remarks, first the archives to download and the disk space needed.

    Raises:
        UserError: the dataset has no public archives, an archive cannot be downloaded or is not the published
            one, or the disk is too small.
    """
    if name in _BY_HAND:
        raise UserError(
            f"dataset {name!r} has no public address for its images; get it by hand: " + commands(name, root)
        )
    if name not in ARCHIVES:
        raise UserError(f"dataset {name!r} has no official archives{nearest(name, ARCHIVES)}")
    with exclusive(root / ".download.lock"):
        wanted = [archive for archive in ARCHIVES[name] if not _done(root, archive).exists()]
        _check_room(wanted, root, announce)
        for archive in wanted:
            place = root / archive.name
            fetch(
                archive.urls,
                place,
                size=archive.size,
                checksum=archive.checksum,
                progress=progress,
                announce=announce,
            )
            unpack(place, root, progress(f"unpack {archive.name} (MiB)"))
            atomic_write_bytes(_done(root, archive), f"{archive.checksum}\n".encode())
        if wanted:
            files = " ".join(shlex.quote(str(root / archive.name)) for archive in wanted)
            announce(f"{name} is unpacked; the archives can be removed: rm {files}")


def _done(root: Path, archive: Archive) -> Path:
    """The file that marks a completely unpacked archive."""
    return root / f".{archive.name}.unpacked"


def _check_room(wanted: list[Archive], root: Path, announce: Callable[[str], None]) -> None:
    room = 0
    for archive in wanted:
        place = root / archive.name
        room += max(archive.size - have(place), 0)
        whole = place.is_file() and place.stat().st_size == archive.size
        room += need(place, root) if whole else archive.unpacked
        announce(
            f"{archive.name}: {amount(archive.size)} from {archive.urls[0]} into {root}, "
            f"unpacks to {archive.unpacks}"
        )
    free = shutil.disk_usage(root).free
    text = (
        f"{root}: {amount(room)} are needed for archives and their content, the disk has {amount(free)} left"
    )
    if room > free:
        raise UserError(f"{text}; make room or choose another folder with `prepare --root`")
    announce(text)
