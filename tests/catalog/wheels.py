"""Builds small wheels, sound and hostile."""

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

GGUF = b"GGUF" + bytes(range(256)) * 40
FOLDER_MODEL = {
    "tiny/model/config.json": b'{"model_type": "bert"}',
    "tiny/model/model.safetensors": bytes(range(256)) * 30,
    "tiny/model/tokenizer.json": b'{"version": "1.0"}',
    "tiny/model/1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "tiny/model/LICENSE": b"Apache-2.0",
    "tiny/model/modeling.py": b"raise SystemExit('imported')",
    "tiny/model/pytorch_model.bin": b"pickle",
    "tiny/model/.gitattributes": b"*.bin lfs",
    "tiny/__init__.py": b"raise SystemExit('imported')",
}


def record_row(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}"


def build_wheel(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    package: str = "tiny-model",
    version: str = "1.0",
    record: Mapping[str, bytes] | None = None,
    extra: tuple[zipfile.ZipInfo, ...] = (),
) -> Path:
    """Write a wheel; `record` says what RECORD claims if not the truth."""
    stem = f"{package.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    claimed = {**files, **(record or {})}
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    members = {
        **files,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "\n".join(
            [*(record_row(name, content) for name, content in claimed.items()), f"{info}/RECORD,,"]
        ).encode(),
    }
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for member in extra:
            archive.writestr(member, b"/etc/passwd")
    return wheel
