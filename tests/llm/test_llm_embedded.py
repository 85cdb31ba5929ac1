import hashlib

import pytest

from crops.errors import CropsError, MissingExtraError
from crops.llm import embedded_server
from crops.llm.endpoint import check_model


def test_model_must_have_the_pinned_hash(tmp_path):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"weights")
    check_model(gguf, hashlib.sha256(b"weights").hexdigest().upper())
    with pytest.raises(CropsError, match="SHA-256 is .* expected 00ff"):
        check_model(gguf, "00ff")


def test_missing_model_is_named(tmp_path):
    with pytest.raises(CropsError, match=r"none\.gguf: no such model file"):
        check_model(tmp_path / "none.gguf", "00ff")


def test_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "xllamacpp", None)
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"a model")
    digest = hashlib.sha256(b"a model").hexdigest()
    with pytest.raises(MissingExtraError, match=r"crops-retrieval\[llm\]"), embedded_server(gguf, digest):
        pass


def test_a_file_that_is_no_model_is_named(tmp_path):
    pytest.importorskip("xllamacpp")
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"weights")
    server = embedded_server(gguf, hashlib.sha256(b"weights").hexdigest())
    with pytest.raises(CropsError, match=r"model\.gguf: llama\.cpp cannot load"), server:
        pass
