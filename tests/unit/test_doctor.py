"""What the doctor finds amiss, and the agent's own configuration as it reads it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from zlayer_driver.cli import doctor
from zlayer_driver.cli.agent_config import read
from zlayer_driver.cli.commands import cli
from zlayer_driver.config import PluginConfig, parse
from zlayer_driver.errors import ConfigError
from zlayer_driver.host import cgroups

HCL = """
plugin_dir = "{plugins}"
plugin "zlayer-driver" {{
  config {{
    state_dir        = "{state}"
    fallback         = ["delegate"]
    registry_mirrors = {{ "docker.io" = "mirror:5000" }}
    allow_privileged = true
    overlay {{
      network  = "10.88.0.0/16"
      subnet   = "10.88.1.0/24"
      endpoint = "127.0.0.1"
      peer {{
        name     = "other"
        endpoint = "127.0.0.2"
        subnet   = "10.88.2.0/24"
      }}
    }}
  }}
}}
"""


def _checked(**config: object) -> dict[str, str]:
    checks = dict(doctor._checks(PluginConfig.model_validate(config), None))  # what is amiss, without the node's own health
    return {what: amiss for what, amiss in checks.items() if amiss}


def test_hcl_is_read_as_the_agent_reads_it(tmp_path: Path) -> None:
    (tmp_path / "agent.hcl").write_text(HCL.format(plugins="/opt/plugins", state="/srv/z"))
    found = read(tmp_path / "agent.hcl")
    config = parse(PluginConfig, found.config, what="config")
    assert found.plugin_dir == "/opt/plugins"
    assert (config.state_dir, config.fallback, config.registry_mirrors, config.allow_privileged) == (
        "/srv/z",
        ["delegate"],
        {"docker.io": "mirror:5000"},
        True,
    )
    assert config.overlay is not None
    assert [peer.name for peer in config.overlay.peer] == ["other"]


def test_keys_of_other_blocks_may_be_quoted_and_dotted_as_agents_take_them(tmp_path: Path) -> None:
    (tmp_path / "agent.hcl").write_text(
        """
        client {
          options { "driver.allowlist" = "zlayer" }
          meta {
            "owner" = "ops"
            rack.row = "7"
          }
        }
        plugin "zlayer-driver" { config { registry_mirrors { "docker.io" = "mirror:5000" } } }
        """
    )
    assert parse(PluginConfig, read(tmp_path / "agent.hcl").config, what="config").registry_mirrors == {"docker.io": "mirror:5000"}


def test_the_files_of_a_directory_count_together(tmp_path: Path) -> None:
    (tmp_path / "1.hcl").write_text('plugin_dir = "/opt/plugins"\n')
    (tmp_path / "2.json").write_text(json.dumps({"plugin": [{"zlayer-driver": [{"config": [{"state_dir": "/srv/z"}]}]}]}))
    (tmp_path / "notes.txt").write_text("{{{")
    found = read(tmp_path)
    assert (found.plugin_dir, found.config) == ("/opt/plugins", {"state_dir": "/srv/z"})


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.hcl", 'plugin "zlayer-driver" {\n  config { = }\n}', r"a\.hcl cannot be read: line 2, column 12"),
        ("a.json", "{", r"a\.json cannot be read"),
        ("a.json", "[]", "an object is needed"),
        ("a.json", '{"plugin": {"zlayer-driver": {"config": 7}}}', "is no block"),
        ("a.hcl", 'plugin "zlayer" {}', 'no block plugin "zlayer-driver", only zlayer'),
        ("a.json", "{}", 'no block plugin "zlayer-driver":'),
    ],
)
def test_a_file_that_says_nothing_of_the_driver(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=says):
        read(tmp_path / name)


def test_a_key_that_does_not_fit_is_said_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"plugin": {"zlayer-driver": {"config": {"stat_dir": "/srv"}}}}))
    result = CliRunner().invoke(cli, ["--config", str(tmp_path / "a.json"), "images"])
    assert result.exit_code == 1
    assert "a.json does not fit: stat_dir: is no known key" in result.stderr


@pytest.mark.needs("linux")
def test_what_is_fine_is_not_amiss(tmp_path: Path) -> None:
    found = _checked(state_dir=str(tmp_path), overlay={"network": "10.8.0.0/16", "subnet": "10.8.1.0/24", "endpoint": "127.0.0.1"})
    assert found.keys() <= {"user", "control groups"}


@pytest.mark.parametrize(
    ("key", "value", "what", "says"),
    [
        ("state_dir", "/proc/none", "state directory /proc/none", "on a local disk"),
        ("allow_oci_runtimes", ["no-such-runtime"], "allow_oci_runtimes no-such-runtime", "not on the PATH"),
        ("fallback", ["vz"], "fallback vz", "vz"),
        ("caches", ["/nowhere/blobs"], "caches /nowhere/blobs", "correct the path"),
        ("registry_auth_file", "/nowhere/config.json", "registry_auth_file", "docker login"),
        ("registry_ca_file", "/dev/null", "registry_ca_file", "PEM"),
        ("allow_caps", ["net_admn"], "allow_caps net_admn", "no capability"),
        ("image_gc_keep", ["Busy Box"], "image_gc_keep Busy Box", "no image reference"),
        ("registry_mirrors", {"docker.io": "127.0.0.1:1"}, "registry_mirrors 127.0.0.1:1", "cannot be reached"),
        (
            "overlay",
            {"network": "10.8.0.0/16", "subnet": "10.8.1.0/24", "endpoint": "192.0.2.1"},
            "overlay endpoint",
            "no address of this node",
        ),
        (
            "overlay",
            {"network": "127.0.0.0/8", "subnet": "127.0.1.0/24", "endpoint": "127.0.0.1"},
            "overlay endpoint",
            "within the overlay's own network",
        ),
        (
            "overlay",
            {"network": "10.8.0.0/16", "endpoint": "127.0.0.1", "nomad": {"address": "127.0.0.1:4646"}},
            "overlay nomad",
            "no http, https or unix URL",
        ),
    ],
)
def test_what_is_amiss_is_said_with_its_cure(tmp_path: Path, key: str, value: object, what: str, says: str) -> None:
    found = _checked(**{"state_dir": str(tmp_path), key: value})
    assert says in found[what]


def test_a_credential_helper_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"credHelpers": {"ghcr.io": "no-such"}}')
    assert "docker-credential-no-such" in _checked(registry_auth_file=str(tmp_path / "config.json"))["registry_auth_file"]


def test_controllers_that_the_kernel_does_not_have() -> None:
    mounted = cgroups.trees("1 0 0:1 / /c rw - cgroup c rw,cpu,pids")
    assert "memory" in doctor._control_groups(mounted)  # no machine here lacks one


def test_the_plugin_directory(tmp_path: Path) -> None:
    (tmp_path / "agent.hcl").write_text(HCL.format(plugins=tmp_path, state=tmp_path))
    argv = ["--config", str(tmp_path / "agent.hcl"), "doctor", "--json"]

    def found() -> dict[str, str]:
        return {row["what"]: row["detail"] for row in json.loads(CliRunner().invoke(cli, argv).stdout)}

    assert "install --plugin-dir" in found()["plugin directory"]
    installed = CliRunner().invoke(cli, ["install", "--plugin-dir", str(tmp_path)])
    assert installed.exit_code == 0
    assert found()["plugin directory"] == ""


def test_install_links_and_prints_what_the_agent_needs(tmp_path: Path) -> None:
    argv = ["--state-dir", "/srv/z", "install", "--plugin-dir", str(tmp_path / "plugins")]
    results = [CliRunner().invoke(cli, argv) for _ in range(2)]
    assert [result.exit_code for result in results] == [0, 0]
    link = tmp_path / "plugins" / "zlayer-driver"
    assert link.readlink() == Path(sys.prefix, "bin", "zlayer-driver")
    (tmp_path / "agent.hcl").write_text(results[1].stdout)
    found = read(tmp_path / "agent.hcl")
    assert (found.plugin_dir, found.config) == (str(link.parent), {"state_dir": "/srv/z"})
    assert [path.name for path in link.parent.iterdir()] == ["zlayer-driver"]


def test_install_leaves_somebody_elses_file_alone(tmp_path: Path) -> None:
    (tmp_path / "zlayer-driver").write_text("theirs")
    result = CliRunner().invoke(cli, ["install", "--plugin-dir", str(tmp_path)])
    assert result.exit_code == click.ClickException.exit_code
    assert "move it away first" in result.stderr
    assert (tmp_path / "zlayer-driver").read_text() == "theirs"
