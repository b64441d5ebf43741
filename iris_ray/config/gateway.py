"""Settings of the gateway."""

from pydantic import Field

from iris_ray.config.section import Section


class Gateway(Section):
    """The run over HTTP: a page, its status, orders, and its policy as an OpenAI-compatible endpoint."""

    port: int | None = Field(None, ge=1, le=65535)
    """Where it listens. Empty: there is no gateway."""
    host: str = "127.0.0.1"
    """Address it listens at; the default is reached from its own machine only."""
    prefix: str = Field("/", pattern=r"^/([\w.-]+(/[\w.-]+)*)?$")
    """What its paths begin with. Runs of one cluster share the port and need one each."""
    max_requests: int = Field(4, ge=1)
    """Answers of the policy that are written at the same time; a request for more is refused."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest answer of the policy, in tokens. Empty: `data.max_response_tokens`."""
    max_body_kib: int = Field(256, ge=1)
    """Largest body of a request."""
