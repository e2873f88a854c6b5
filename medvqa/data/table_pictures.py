"""The pictures of a table's rows: bytes in the row, files, or members of ZIP files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from medvqa.config.data import RowsConfig
from medvqa.config.errors import UserError
from medvqa.data.columns import cell, roots
from medvqa.data.example import ImageSource
from medvqa.data.image import ImageBytes, image_id
from medvqa.data.nifti import image_file
from medvqa.data.storage.archive import safe_name
from medvqa.data.storage.archive_set import ArchiveSet, local_archives
from medvqa.data.storage.files import named_images
from medvqa.data.storage.hub import RowImage
from medvqa.data.storage.hub_archive import hub_archives
from medvqa.data.storage.row_files import TableRows
from medvqa.data.tables import Table


class TablePictures:
    """Finds the pictures of one table.

    Args:
        table: The data set: its archives and folders.
        config: Path, repository and `image_root`.
        rows: The rows.
        spec: What holds the pictures, as `columns` has it.
    """

    def __init__(self, table: Table, config: RowsConfig, rows: TableRows, spec: Any) -> None:
        self._rows, self._spec = rows, spec
        self._stored = [name for name in roots(spec, rows.columns) if rows.holds_bytes(name)]
        self._images = rows.rows.select_columns(self._stored) if self._stored else None
        self._ids: dict[str, str] = {}
        self._find = self._finder(table, config)

    def _finder(self, table: Table, config: RowsConfig) -> Callable[[str], ImageSource]:
        """Return what gives the picture of a name in a row."""
        directory = Path(config.path).expanduser() if config.path else None
        unpacked = directory / table.image_root if directory and table.image_root else None
        if config.image_root is not None:
            return _in_root(Path(config.image_root).expanduser())
        if table.archives is not None and not self._stored:
            repository = config.repository or str(table.repository)
            archives = (
                hub_archives(repository, config.revision, table.archives)
                if directory is None
                else local_archives(directory, table.archives)
            )
            return self._in_archives(ArchiveSet(archives, unpacked))
        folder = unpacked if unpacked is not None and unpacked.is_dir() else self._rows.folder
        return lambda name: image_file(folder / name)

    def _in_archives(self, archives: ArchiveSet) -> Callable[[str], ImageSource]:
        """Fetch the members that the rows name, before the first row is read."""
        texts = self._rows.texts(roots(self._spec, self._rows.columns))
        rows = (row for row in texts if isinstance(row, Mapping))
        names = (name for row in rows for name in _listed(cell(row, self._spec)))
        images = archives.fetch({PurePosixPath(n).name for n in names if isinstance(n, str)})

        def find(name: str) -> ImageSource:
            base = PurePosixPath(safe_name(name)).name
            if base not in images:
                raise archives.missing(base)
            return images[base]

        return find

    def ids(self, images: Sequence[ImageSource]) -> tuple[str, ...]:
        """Return what tells pictures apart: a hash of the bytes, computed once per file."""
        return tuple(self._id(image) for image in images)

    def _id(self, image: ImageSource) -> str:
        if isinstance(image, RowImage | ImageBytes):  # each row has its own
            return image_id(image)
        if image.name not in self._ids:
            self._ids[image.name] = image_id(image)
        return self._ids[image.name]

    def of_row(self, row: Mapping[str, Any], number: int) -> tuple[ImageSource, ...]:
        """Return the pictures of a row, in order.

        Raises:
            UserError: If it has none, or one cannot be found.
        """
        place = self._rows.named(number)
        if self._stored:
            images = self._stored_images(place, number)
        else:
            images = [self._named(place, name) for name in _listed(cell(row, self._spec))]
        if not images:
            raise UserError("has no image")
        return tuple(images)

    def _stored_images(self, place: str, number: int) -> list[ImageSource]:
        """Return the pictures inside a row of a data set on disk."""
        images: Any = self._images
        has_list = {
            column: isinstance(feature, list) or hasattr(feature, "feature")
            for column, feature in images.features.items()
        }
        if not any(has_list.values()) and len(self._stored) == 1:
            return [RowImage(place, images, number, self._stored[0])]
        sources: list[ImageSource] = []
        for column, content in images[number].items():
            for index, value in enumerate(content if has_list[column] else [content]):
                if value is not None:
                    item = index if has_list[column] else None
                    sources.append(RowImage(f"{place}.{column}", images, number, column, item))
        return sources

    def _named(self, place: str, name: Any) -> ImageSource:
        if isinstance(name, bytes):
            return ImageBytes(place, name)
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"image is {type(name).__name__}, not a path: {name!r:.80}")
        if "://" in name[:12]:
            raise UserError(
                f"image {name:.80} is an address; fetch the pictures and give "
                "data.image_root=, and data.columns.image= a path or a template"
            )
        return self._find(name)


def _in_root(root: Path) -> Callable[[str], ImageSource]:
    """Return what gives a picture below `data.image_root`, a folder or a ZIP file."""
    if root.suffix.lower() == ".zip":
        members = named_images(root.with_suffix(""))

        def find(name: str) -> ImageSource:
            if safe_name(name) not in members:
                raise UserError(f"image {name} is not in {root}")
            return members[safe_name(name)]

        return find
    if not root.is_dir():
        raise UserError(f"data.image_root={root} is no directory and no ZIP file")
    return lambda name: image_file(root / name)


def _listed(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
