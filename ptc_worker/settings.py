"""The worker's settings, from the environment variables that users already have."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ptc_contracts import ConfigurationError, LLMProvider

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ENV_PREFIX = {LLMProvider.CLAUDE: "ANTHROPIC"}


@dataclass(frozen=True)
class ProviderSettings:
    """How to reach one provider's models."""

    name: str
    model: str
    base_url: str | None
    api_key: str | None = field(repr=False)
    rpm: int | None = None
    """Most requests a minute, of all workers together."""
    tpm: int | None = None
    """Most tokens a minute, of all workers together."""

    @property
    def mark(self) -> str:
        """Tell this address and key from others of the same provider, without naming them: 8 hex digits."""
        return sha256(f"{self.base_url}\n{self.api_key}".encode("utf-8", "surrogatepass")).hexdigest()[:8]

    @property
    def configured(self) -> bool:
        """Whether there is a key, or an address that may need none."""
        return bool(self.api_key or self.base_url)

    @property
    def key_or_stand_in(self) -> str:
        """The key, or a text that local servers take for one: the SDKs refuse an empty key."""
        return self.api_key or "no-key"


class WorkerSettings(BaseSettings):
    """What a worker can be told; every variable is optional."""

    model_config = SettingsConfigDict(
        extra="ignore", env_ignore_empty=True, frozen=True, use_attribute_docstrings=True
    )

    anthropic_api_key: SecretStr | None = None
    """Key for Claude."""
    anthropic_base_url: str | None = None
    """Another address for Claude: a proxy, or a local server that speaks `/v1/messages`."""
    anthropic_model: str = "claude-sonnet-5-5"
    """The Claude model."""
    anthropic_rpm: int | None = Field(default=None, ge=1)
    """Most requests a minute to Claude, of all workers together; no limit of ours unless set."""
    anthropic_tpm: int | None = Field(default=None, ge=1)
    """Most tokens a minute, read and written, to Claude, of all workers together; no limit of ours unless set."""
    kimi_api_key: SecretStr | None = None
    """Key for Kimi."""
    kimi_base_url: str | None = None
    """Another address for Kimi; `https://api.moonshot.ai/v1` when there is a key and no address."""
    kimi_model: str = "kimi-k3.1-pro"
    """The Kimi model."""
    kimi_rpm: int | None = Field(default=None, ge=1)
    """Most requests a minute to Kimi, of all workers together; no limit of ours unless set."""
    kimi_tpm: int | None = Field(default=None, ge=1)
    """Most tokens a minute, read and written, to Kimi, of all workers together; no limit of ours unless set."""
    openai_api_key: SecretStr | None = None
    """Key for OpenAI."""
    openai_base_url: str | None = None
    """Another address for OpenAI, such as Ollama's `http://localhost:11434/v1`."""
    openai_model: str = "gpt-6.1-terra"
    """The OpenAI model."""
    openai_rpm: int | None = Field(default=None, ge=1)
    """Most requests a minute to OpenAI, of all workers together; no limit of ours unless set."""
    openai_tpm: int | None = Field(default=None, ge=1)
    """Most tokens a minute, read and written, to OpenAI, of all workers together; no limit of ours unless set."""
    openrouter_api_key: SecretStr | None = None
    """Key for OpenRouter."""
    openrouter_base_url: str | None = None
    """Another address for OpenRouter; `https://openrouter.ai/api/v1` when there is a key and no address."""
    openrouter_model: str = "anthropic/claude-sonnet-5.5"
    """The OpenRouter model."""
    openrouter_rpm: int | None = Field(default=None, ge=1)
    """Most requests a minute to OpenRouter, of all workers together; no limit of ours unless set."""
    openrouter_tpm: int | None = Field(default=None, ge=1)
    """Most tokens a minute, read and written, to OpenRouter, of all workers together; no limit of ours unless set."""
    ptc_max_output_tokens: int = Field(default=32_000, ge=256)
    """Most tokens one answer may have, thinking included."""
    ptc_max_cost_usd: float | None = Field(default=None, ge=0)
    """Most US dollars that the models of one plan may cost; no limit unless set. A plan may set a lower one."""
    ptc_max_cost_usd_per_day: float | None = Field(default=None, ge=0)
    """Most US dollars that all plans of a day (UTC) may cost together; no limit unless set."""
    ptc_unknown_price_per_mtok: float = Field(default=20.0, ge=0)
    """US dollars a million tokens of a model count against these limits when its price is not known."""
    ptc_response_cache_ttl: int = Field(default=3600, ge=0)
    """Seconds a model's answer is kept for the very same prompt of any run; 0 keeps none."""
    ptc_stream_output: bool = True
    """Whether those who follow a run see what models write while they write it; else only how much."""
    ptc_record: Path | None = None
    """A folder that gets what models were asked and answered, redacted, in the form that `ptc-replay` plays."""
    ptc_sandbox: Literal["local", "daytona", "docker", "e2b"] | None = None
    """Where tests run: `local`, `daytona`, `docker` or `e2b`. Unless set, `daytona` when there is a key for it, else `local`."""
    ptc_sandbox_concurrency: int | None = Field(default=None, ge=1)
    """Most sandboxes at a time in one worker; unless set the number of cores, or of stages where they are not local."""
    ptc_sandbox_memory_mb: int = Field(default=1024, ge=128)
    """Memory of one sandbox in MiB: all its processes and files together."""
    ptc_sandbox_disk_mb: int = Field(default=256, ge=16)
    """What a project may write in one run of its tests, in MiB; it is kept in memory where there is bubblewrap."""
    ptc_sandbox_isolation: Literal["auto", "bubblewrap", "landlock", "none"] = "auto"
    """What keeps generated code in; `auto` takes bubblewrap, or Landlock where namespaces are refused."""
    ptc_sandbox_allow_unisolated: bool = False
    """Whether generated code may run where nothing keeps it in: it can then do what the worker can."""
    ptc_sandbox_pool: int | None = Field(default=None, ge=0)
    """Sandboxes a worker prepares ahead, each used once; unless set 2 where they are local (50 MiB each), 0 where they cost."""
    ptc_sandbox_start_timeout: float = Field(default=60.0, gt=0)
    """Most seconds a sandbox that is not local may take until it can be used."""
    daytona_api_key: SecretStr | None = None
    """Key for Daytona; with it tests run there unless `PTC_SANDBOX` says otherwise."""
    daytona_api_url: str = "https://app.daytona.io/api"
    """Address of Daytona's API."""
    daytona_target: str | None = None
    """Region of Daytona's sandboxes; the account's own unless set."""
    ptc_daytona_snapshot: str | None = None
    """Snapshot that Daytona's sandboxes are made from; the one that `ptc-daytona-snapshot` registers unless set."""
    ptc_daytona_image: str | None = None
    """Image to make them from instead, such as `python:3.12-slim`; it is built when it is first used."""
    ptc_daytona_network: Literal["block", "tier"] = "block"
    """Whether tests at Daytona have no network (`block`), or what the account's tier allows (`tier`)."""
    docker_host: str | None = None
    """Address of the Docker engine, such as `unix:///run/docker.sock`; the local one unless set."""
    ptc_docker_image: str = "python:3.12-slim"
    """Image that Docker's sandboxes are made from: any with Python 3.11 or newer."""
    ptc_docker_runtime: str | None = None
    """Runtime for them that the engine knows, such as `runsc`; its default unless set."""
    e2b_api_key: SecretStr | None = None
    """Key for E2B."""
    e2b_domain: str = "e2b.app"
    """Domain of E2B's services."""
    e2b_api_url: str | None = None
    """Address of E2B's API where it is not below its domain: one's own E2B."""
    e2b_sandbox_url: str | None = None
    """Address under which all its sandboxes are reached where that is not below its domain."""
    ptc_e2b_template: str = "base"
    """Template that E2B's sandboxes are made from: any with Python 3.11 or newer."""
    ptc_test_timeout: float = Field(default=120.0, gt=0)
    """Most seconds one run of the tests may take; the plan's deadline bounds it too."""
    ptc_allowed_dependencies: Annotated[frozenset[str] | None, NoDecode] = None
    """The only packages a plan may install, separated by commas; all that the plan names unless set."""
    ptc_cache_dir: Path = Field(
        default_factory=lambda: Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptc",
        validate_default=True,
    )
    """Where the environments of installed dependencies are kept."""
    ptc_cache_max_mb: int = Field(default=10_000, ge=0)
    """Most mebibytes kept there when nobody uses them: downloads go first, then the least recently used environments."""
    max_concurrent_executions: int = Field(default=10, ge=1)
    """Stages that one worker process works on at a time."""
    ptc_max_deliveries: int = Field(default=5, ge=1)
    """Times a stage is begun without progress before its run is given up: each time its worker died or fell silent."""
    ptc_shutdown_grace: float = Field(default=20.0, ge=0, le=86_400)
    """Seconds a worker that is told to end (SIGTERM) lets its work finish; what has not by then is handed back."""
    ptc_log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    """The least severe log lines that are shown."""

    @field_validator("ptc_allowed_dependencies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("ptc_record")
    @classmethod
    def _takes_files(cls, value: Path | None) -> Path | None:
        """Refuse at the start what would lose every transcript: answers that are paid for come once."""
        if value is not None:
            there = next(place for place in (value, *value.absolute().parents) if os.access(place, os.F_OK))
            if not there.is_dir():
                raise ValueError(f"{there} is not a folder")
            if not os.access(there, os.W_OK | os.X_OK):
                raise ValueError(f"{there} cannot be written")
        return value

    @field_validator("ptc_cache_dir")
    @classmethod
    def _resolved(cls, value: Path) -> Path:
        """Follow links once: sandboxes find it by this path, where not every folder may be there to follow them."""
        return value.resolve()

    @field_validator("ptc_log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @property
    def sandbox(self) -> str:
        """The kind of sandbox that is used."""
        return self.ptc_sandbox or ("daytona" if self.daytona_api_key else "local")

    @property
    def sandboxes_at_once(self) -> int:
        """Most sandboxes at a time in this process."""
        others = os.cpu_count() or 1 if self.sandbox == "local" else self.max_concurrent_executions
        return self.ptc_sandbox_concurrency or others

    @property
    def sandboxes_ahead(self) -> int:
        """Sandboxes to prepare ahead."""
        if self.ptc_sandbox_pool is not None:
            return self.ptc_sandbox_pool
        return 2 if self.sandbox == "local" else 0

    @classmethod
    def read(cls) -> WorkerSettings:
        """Read the process environment.

        Raises:
            ConfigurationError: naming every variable that cannot be understood, and no value.
        """
        try:
            return cls()
        except ValidationError as error:
            problems = (
                f"{str(e['loc'][0]).upper()}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors(include_input=False)
            )
            raise ConfigurationError("; ".join(problems)) from None

    def provider(self, name: LLMProvider) -> ProviderSettings:
        """Gather what is known of one provider."""
        prefix = _ENV_PREFIX.get(name, name.name).lower()
        secret: SecretStr | None = getattr(self, f"{prefix}_api_key")
        key = secret.get_secret_value().strip() if secret else None
        base_url: str | None = getattr(self, f"{prefix}_base_url")
        if key and not base_url:
            base_url = _DEFAULT_BASE_URLS[name]
        return ProviderSettings(
            name=name.value,
            model=getattr(self, f"{prefix}_model"),
            base_url=base_url,
            api_key=key or None,
            rpm=getattr(self, f"{prefix}_rpm"),
            tpm=getattr(self, f"{prefix}_tpm"),
        )


_DEFAULT_BASE_URLS = {
    LLMProvider.CLAUDE: "https://api.anthropic.com",
    LLMProvider.KIMI: "https://api.moonshot.ai/v1",
    LLMProvider.OPENAI: "https://api.openai.com/v1",
    LLMProvider.OPENROUTER: "https://openrouter.ai/api/v1",
}


def variables_of(name: LLMProvider) -> str:
    """Name the variables that configure a provider, for messages."""
    prefix = _ENV_PREFIX.get(name, name.name)
    return f"{prefix}_API_KEY or {prefix}_BASE_URL"


def secrets_of(settings: WorkerSettings, environ: Mapping[str, str]) -> frozenset[str]:
    """Gather every secret that a worker is configured with."""
    return frozenset(value.strip() for value in _configured(settings, environ) if value.strip())


def _configured(settings: WorkerSettings, environ: Mapping[str, str]) -> Iterator[str]:
    for name in LLMProvider:
        provider = settings.provider(name)
        yield provider.api_key or ""
        yield from _credentials(provider.base_url or "", lone_user_too=True)
    yield from (value for name, value in environ.items() if name.endswith(_SECRET_NAMES))
    yield from _credentials(environ.get("REDIS_URL", ""))
    for user in environ.get("FLOWER_BASIC_AUTH", "").split(","):
        yield user.partition(":")[2]


_SECRET_NAMES = ("_API_KEY", "_SIGNING_KEY", "_PASSWORD", "_TOKEN", "_SECRET", "_BASIC_AUTH")
"""How the names of variables end that hold secrets, ours and others'."""


def _credentials(url: str, *, lone_user_too: bool = False) -> Iterator[str]:
    """Find the password of an address, or the token in its user's place, as written and as meant."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return
    secret = parts.password or (parts.username if lone_user_too else None)
    if secret:
        yield from (secret, unquote(secret))
    yield from parse_qs(parts.query).get("password", ())  # redis-py takes it from there too
