"""A stream is the same in memory and in files; one that is abandoned leaves nothing."""

import numpy as np

from jaxllm.train.data.streams.stream_writer import Encoded, StreamWriter


def test_documents_follow_each_other(tmp_path):
    for file in (None, tmp_path / "a.npy"):
        writer = StreamWriter(np.dtype(np.uint8), file)
        writer.add([Encoded([97, 98, 0]), Encoded([0])])
        writer.add([])
        writer.add([Encoded([99, 0])])
        assert (writer.num_documents, writer.num_tokens) == (3, 6)
        stream = writer.close()
        assert stream.tokens.tolist() == [97, 98, 0, 0, 99, 0]
        assert stream.tokens.dtype == np.uint8
        assert stream.starts.tolist() == [0, 3, 4]
        assert stream.is_target is None


def test_nothing_is_a_stream_too(tmp_path):
    for file in (None, tmp_path / "a.npy"):
        stream = StreamWriter(np.dtype(np.uint16), file, with_targets=True).close()
        assert len(stream.tokens) == len(stream.starts) == len(stream.is_target) == 0


def test_an_abandoned_stream_leaves_no_file(tmp_path):
    writer = StreamWriter(np.dtype(np.uint8), tmp_path / "a.npy", with_targets=True)
    writer.add([Encoded([1, 2])])
    assert len(list(tmp_path.iterdir())) == 2
    writer.abandon()
    assert list(tmp_path.iterdir()) == []
