"""Print the oldest versions that pyproject.toml allows, as constraints for pip (`make oldest`)."""

import re
from pathlib import Path

text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
# Any Python can run this, before anything is installed: 3.10 has no module that reads TOML.
for name, version in re.findall(r'^ +"([\w-]+)>=([\w.]+)",', text, re.MULTILINE):
    print(f"{name}=={version}")
