"""TensorBoard's event files, written by tensorboardX (optional; ``pip install 'dalle-prefect[tensorboard]'``).

Steps stand in for wall-clock times, so equal runs give equal bytes and the file can be part of an artifact.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def available() -> bool:
    """Whether tensorboardX is installed."""
    try:
        import tensorboardX  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except ImportError:
        return False
    return True


class EventFile:
    """A file that TensorBoard reads, whole after every point. ``file`` must not exist; its folder is made."""

    def __init__(self, file: Path) -> None:
        from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-not-found,import-untyped,unused-ignore]
        from tensorboardX.record_writer import RecordWriter  # type: ignore[import-not-found,import-untyped,unused-ignore]

        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self._event: Any = Event
        self._writer = RecordWriter(str(file))
        self._writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())

    def point(self, point: Mapping[str, float]) -> None:
        """Every figure of the point under its own name."""
        step = int(point["step"])
        values = [{"tag": name, "simple_value": float(v)} for name, v in sorted(point.items()) if name != "step"]
        self._write(step, values)

    def picture(self, step: int, title: str, png: bytes, size_px: tuple[int, int]) -> None:
        """The PNG as it is."""
        width, height = size_px
        image = {"width": width, "height": height, "colorspace": 3, "encoded_image_string": png}
        self._write(step, [{"tag": title, "image": image}])

    def close(self) -> None:
        """Nothing more follows."""
        self._writer.close()

    def _write(self, step: int, values: Sequence[Mapping[str, Any]]) -> None:
        event = self._event(wall_time=float(step), step=step, summary={"value": values})
        self._writer.write(event.SerializeToString())
        self._writer.flush()
