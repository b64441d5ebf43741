"""Where processes that compute look for programs."""

import os
import sys
from pathlib import Path

# Builds at run time take the installation's ninja: two versions would each compile anew what the other did.
PATH = os.pathsep.join(
    dict.fromkeys([str(Path(sys.executable).parent), *os.environ.get("PATH", "").split(os.pathsep)])
)
