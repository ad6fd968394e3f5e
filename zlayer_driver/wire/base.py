"""The ``BasePlugin`` service: who the plugin is, the shape of its config block, and the block itself."""

from __future__ import annotations

from collections.abc import Callable

from zlayer_driver.config import PluginConfig, parse
from zlayer_driver.wire import codec, hclspec, stats
from zlayer_driver.wire._gen import base_pb2 as pb
from zlayer_driver.wire.verbs import DriverVerbs

API_VERSION = "v0.1.0"


class BasePlugin:
    """``know_cores`` is told what Nomad counts one core of this node as, in MHz."""

    def __init__(self, driver: DriverVerbs, know_cores: Callable[[float], None]) -> None:
        self._driver = driver
        self._know_cores = know_cores

    async def plugin_info(self, _: pb.PluginInfoRequest) -> pb.PluginInfoResponse:
        return pb.PluginInfoResponse(
            type=pb.DRIVER, plugin_api_versions=[API_VERSION], plugin_version=self._driver.version, name=self._driver.name
        )

    async def config_schema(self, _: pb.ConfigSchemaRequest) -> pb.ConfigSchemaResponse:
        return pb.ConfigSchemaResponse(spec=hclspec.of(PluginConfig))

    async def set_config(self, request: pb.SetConfigRequest) -> pb.SetConfigResponse:
        config = parse(PluginConfig, codec.config_from(request.msgpack_config, what="plugin config"), what="plugin config")
        await self._driver.set_config(config, validate_only=not request.HasField("nomad_config"))
        self._know_cores(stats.core_mhz(request.nomad_config.driver.Topology))
        return pb.SetConfigResponse()
