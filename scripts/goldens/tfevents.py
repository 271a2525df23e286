"""tests/goldens/tfevents.bin: an event file as TensorBoard's own package writes it. pip install tensorboard

The test writes the same events by hand and compares bytes. What was written is read back here by TensorBoard's loader,
so that the file is known to be one.
"""

import pathlib

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

PATH = pathlib.Path(__file__).parents[2] / "tests/goldens/tfevents.bin"
TEXT = "**Epoch 1.** Why?\n\n---\n\nBecause: é, 語."


def events():
    yield event_pb2.Event(wall_time=1700000000.25, file_version="brain.Event:2")
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    yield event_pb2.Event(wall_time=1700000000.25, step=301, session_log=start)
    scalars = [("train/loss", 2.5), ("train/learning_rate", 1e-5), ("speed/mfu", 0.0)]
    values = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars]
    yield event_pb2.Event(wall_time=1700000001.5, step=301, summary=summary_pb2.Summary(value=values))
    tensor = tensor_pb2.TensorProto(
        dtype="DT_STRING",
        tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)]),
        string_val=[TEXT.encode()],
    )
    metadata = summary_pb2.SummaryMetadata(plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="text"))
    value = summary_pb2.Summary.Value(tag="samples/01", tensor=tensor, metadata=metadata)
    yield event_pb2.Event(wall_time=1700000002.0, step=0, summary=summary_pb2.Summary(value=[value]))


with open(PATH, "wb") as file:
    writer = RecordWriter(file)
    for event in events():
        writer.write(event.SerializeToString(deterministic=True))

read = list(EventFileLoader(str(PATH)).Load())
assert [event.step for event in read] == [0, 301, 301, 0]
assert read[3].summary.value[0].tensor.string_val[0].decode() == TEXT
print(f"{PATH}: {PATH.stat().st_size} bytes, {len(read)} events")
