"""An example for JupyterHub: every student gets a copy of the notebooks and a server of their own.

In the environment of environment.yml, with jupyterhub and configurable-http-proxy added:

    jupyterhub --config teaching/jupyterhub_config.py

Everybody can log in with the password in NST_PASSWORD, and all servers belong to one system
account. This is only for a trial on a closed network. For a class, choose another authenticator,
and a spawner that enforces the limits, such as systemdspawner or dockerspawner. To leave out the
solutions, run `make handout` and replace "notebooks" by "handout" below, also in the URL.
"""

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUDENTS = Path(os.environ.get("NST_STUDENTS", ROOT / "students"))


def give_copy(spawner):
    """Copy the notebooks and pictures into the student's folder if they are not there yet."""
    folder = STUDENTS / spawner.user.name
    for name in ("notebooks", "images"):
        if not (folder / name).exists():
            shutil.copytree(ROOT / name, folder / name)
    spawner.notebook_dir = str(folder)


c = get_config()  # noqa: F821
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = os.environ["NST_PASSWORD"]
c.Authenticator.allow_all = True
c.JupyterHub.spawner_class = "simple"
c.Spawner.pre_spawn_hook = give_copy
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
c.Spawner.default_url = "/lab/tree/notebooks"
c.Spawner.start_timeout = c.Spawner.http_timeout = 120  # in seconds, if thirty start at once
# Two threads for each student. Threads that wait for each other stop spinning early.
c.Spawner.environment = {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "2000"}
c.Spawner.mem_limit = "4G"  # enforced by systemdspawner and dockerspawner
c.Spawner.cpu_limit = 2
# A kernel without an open tab is shut down after an idle hour, which frees its memory.
c.Spawner.args = ["--MappingKernelManager.cull_idle_timeout=3600"]
# Otherwise uploading a photograph of more than 10 MB breaks the connection to the kernel.
c.Spawner.args += ["--ServerApp.tornado_settings={'websocket_max_message_size': 300000000}"]
