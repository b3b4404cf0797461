"""TensorBoard's event files: what is in them, and that equal runs give equal bytes."""

from pathlib import Path

from support.tiny import TinyRun
from tensorboardX.proto.event_pb2 import Event

from tasks.tracker import EventFile


def _events(data: bytes) -> list[Event]:
    """TFRecord: length, its checksum, data, its checksum."""
    events, place = [], 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 8], "little")
        events.append(Event.FromString(data[place + 12 : place + 12 + size]))
        place += 12 + size + 4
    return events


def test_points_and_pictures_are_read_back_and_bytes_do_not_depend_on_the_time(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        file = EventFile(tmp_path / name / "events.out.tfevents")
        file.point({"step": 3.0, "loss": 0.5, "lr": 0.1})
        file.picture(3, "samples", b"png", (4, 2))
        file.close()
        files.append(file.file.read_bytes())
    assert files[0] == files[1]
    version, point, picture = _events(files[0])
    assert version.file_version == "brain.Event:2"
    assert point.step == 3 and {v.tag: v.simple_value for v in point.summary.value}["loss"] == 0.5
    image = picture.summary.value[0].image
    assert (image.width, image.height, image.encoded_image_string) == (4, 2, b"png")


def test_a_trained_artifact_has_its_curve_and_samples_in_an_event_file(tiny_run: TinyRun) -> None:
    for stage, title in (("fit", "Drawn from captions"), ("fit-tokenizer", "Original and reconstruction")):
        manifest = tiny_run.manifest(stage)
        events = _events(tiny_run.store.read(manifest.object_of("tensorboard")))
        losses = [e.step for e in events for v in e.summary.value if v.tag == "loss"]
        assert losses == list(range(1, 10))
        pictures = {e.step: v.image.encoded_image_string for e in events for v in e.summary.value if v.tag == title}
        stored = {o.rows: tiny_run.store.read(o) for o in manifest.objects_of("training.samples")}
        assert sorted(pictures) == [3, 6, 9] and pictures == stored
