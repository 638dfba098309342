"""Every error that a user can meet, with its exit code.

    PosduifError                       70  a bug in posduif, unless a subclass says otherwise
    ├─ UsageError                       2  InvalidName InvalidDuration InvalidId NoTargets
    ├─ ConfigurationError               3  NoServer InvalidDsn UrlMissing PoolerInBetween PlantedRole
    │                                      NotEnough
    ├─ NotFound                         4  TenantNotFound UserNotFound TokenNotFound DeviceNotFound
    │                                      MessageNotFound MigrationNotFound BackupNotFound
    ├─ Conflict                         5  TenantExists NotOurs WrongState SchemaBehind UserExists DeviceExists
    │                                      TokenUsed TokenExpired TokenRevoked ChecksumDiffers FileExists
    │                                      AmbiguousTenant DamagedBackup
    ├─ ServerError                      6  ServerUnreachable ServerFull TlsFailed AccessDenied StandbyServer
    ├─ OperationFailed                  7  QueryFailed MigrationFailed EmbeddedServerFailed
    ├─ PartialFailure                   8
    ├─ Refused                          9  ConfirmationMissing UnsafeServer SuperuserSession
    ├─ Busy                            10  Blocked
    └─ Interrupted                    130

Exit code 1 is not an error: it is the answer "no" to a question.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

_SECRETS = re.compile(
    r"""(?isx)
      ( (?:password|secret|scram_\w{1,20}_key) \s* = \s* )             # a key of a connection string or URI
      ( '(?:[^'\\]|\\.)*'? | (?:[^\s\\]|\\.?)+ )
    | ( SCRAM-SHA-256\$ ) ( \S+ )                                     # a verifier
    """
)
_USER = re.compile(r"://[^\s:/@]*:")  # what precedes the password in a URI


def scrub(text: str) -> str:
    """Replace every password in *text* by asterisks.

    >>> scrub("postgresql://alice:s3cret@db1/x password=hunter2")
    'postgresql://alice:****@db1/x password=****'
    """
    lines = (_without_password(line) for line in text.split("\n")) if "://" in text else (text,)
    return _SECRETS.sub(lambda m: (m[1] or m[3]) + "****", "\n".join(lines))


def _without_password(line: str) -> str:
    """Mask what a URI holds from its user to the last @ of the line: a password may hold any character."""
    at = line.rfind("@")
    user = _USER.search(line, 0, max(at - 1, 0))
    return f"{line[: user.end()]}****{line[at:]}" if user else line


@dataclass(frozen=True, init=False)
class Run:
    """A command of posduif that would help, as data; the output adds the program's path and the server.

    A word in capitals is a placeholder. *lead* is shown before the command, with a colon between.
    """

    words: tuple[str, ...]
    lead: str

    def __init__(self, *words: str, lead: str = "") -> None:
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "lead", scrub(lead))

    def __str__(self) -> str:
        """Return the hint with its command as it is typed in a shell, without the options of this run.

        >>> str(Run("user", "show", "acme", "Joe the Mobile User", lead="see"))
        "see: posduif user show acme 'Joe the Mobile User'"
        """
        return self.spelled("posduif", "")

    def spelled(self, program: str, options: str) -> str:
        """Return the hint with the path of the program before the command's words and *options* behind them."""
        command = scrub(shlex.join(self.words))
        return f"{self.lead}: {program} {command}{options}" if self.lead else f"{program} {command}{options}"


Hint = str | Run


class PosduifError(Exception):
    """What happened, why, and what to type next.

    *message* states the fact in one line; *why* is the reason, if it adds something, or several, which a terminal
    shows one per line; *hint* is what would help, or several: a command as `Run`, or an action in words.
    """

    exit_code = 70

    def __init__(
        self, message: str, *, why: str | Sequence[str] | None = None, hint: Hint | Sequence[Hint] = ()
    ) -> None:
        super().__init__(message)
        self.message = scrub(message)
        self.reasons = tuple(scrub(w) for w in ((why,) if isinstance(why, str) else why or ()) if w)
        hints = (hint,) if isinstance(hint, Hint) else hint
        self.hints = tuple(scrub(one) if isinstance(one, str) else one for one in hints)

    @property
    def why(self) -> str | None:
        """The reasons in one line."""
        return "; ".join(self.reasons) or None

    @property
    def sentence(self) -> str:
        """What happened and why, in one line, for where an error is one of many."""
        return self.message + (f": {self.why}" if self.why else "")

    @property
    def code(self) -> str:
        """The class's name in snake case: what scripts compare with."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()


class UsageError(PosduifError):
    """The command line cannot be understood or asks for what is not allowed."""

    exit_code = 2


class InvalidName(UsageError):
    """A name breaks the rules for its kind."""


class InvalidDuration(UsageError):
    """A duration is malformed, not positive, or beyond the maximum."""


class InvalidId(UsageError):
    """An identifier is not a UUID."""


class NoTargets(UsageError):
    """A command over a fleet was given neither tenants nor --all."""


class ConfigurationError(PosduifError):
    """The configuration is wrong or lacks something."""

    exit_code = 3


class NoServer(ConfigurationError):
    """No PostgreSQL server is configured, or not the one that was named."""


class InvalidDsn(ConfigurationError):
    """A connection string cannot be parsed or holds what it must not."""


class UrlMissing(ConfigurationError):
    """A tenant has no origin that phones could reach it by."""


class PlantedRole(ConfigurationError):
    """The login is a superuser, and a role that is none may add members to posduif's roles."""


class NotEnough(ConfigurationError):
    """A server does not behave as PostgreSQL where posduif relies on it."""


class PoolerInBetween(ConfigurationError):
    """The connection goes through a connection pooler."""


class NotFound(PosduifError):
    """A named thing does not exist."""

    exit_code = 4


class TenantNotFound(NotFound):
    """No tenant has this id."""


class UserNotFound(NotFound):
    """No user has this name or id."""


class TokenNotFound(NotFound):
    """No enrollment token has this id or secret."""


class DeviceNotFound(NotFound):
    """No device has this id."""


class MessageNotFound(NotFound):
    """No message has this id."""


class MigrationNotFound(NotFound):
    """No migration of this version is there to be abandoned."""


class BackupNotFound(NotFound):
    """There is no such backup."""


class Conflict(PosduifError):
    """What exists conflicts with what was asked."""

    exit_code = 5


class TenantExists(Conflict):
    """A tenant of this name exists."""


class AmbiguousTenant(Conflict):
    """Several servers have a tenant of this name."""


class NotOurs(Conflict):
    """A database or role of this name exists that posduif did not make."""


class WrongState(Conflict):
    """The tenant is in a state that forbids this."""


class SchemaBehind(Conflict):
    """The tenant lacks migrations that the command needs."""


class UserExists(Conflict):
    """A user of this name exists."""


class UserInUse(Conflict):
    """A user cannot be deleted while tokens refer to it."""


class DeviceExists(Conflict):
    """A device of this id is enrolled already."""


class TokenUsed(Conflict):
    """The token was spent."""


class TokenExpired(Conflict):
    """The token's time is over."""


class TokenRevoked(Conflict):
    """The token was revoked."""


class ChecksumDiffers(Conflict):
    """A migration file changed after it was applied."""


class DamagedBackup(Conflict):
    """A backup's file is not what its manifest says."""


class FileExists(Conflict):
    """A file is in the way."""


class ServerError(PosduifError):
    """The server cannot be used."""

    exit_code = 6


class ServerUnreachable(ServerError):
    """No connection could be made, or it broke."""


class ServerFull(ServerUnreachable):
    """The server has no free connection (SQLSTATE 53300)."""


class TlsFailed(ServerError):
    """The connection would not have been as safe as the connection string wants it."""


class AccessDenied(ServerError):
    """The server refuses this login, or the login lacks a right."""


class StandbyServer(ServerError):
    """The server is a standby and takes no changes."""


class OperationFailed(PosduifError):
    """The server refused a statement or a step failed."""

    exit_code = 7


class QueryFailed(OperationFailed):
    """A statement failed; *sqlstate* is PostgreSQL's code."""

    def __init__(
        self,
        message: str,
        *,
        why: str | None = None,
        hint: Hint | Sequence[Hint] = (),
        sqlstate: str | None = None,
        constraint: str | None = None,
        position: int | None = None,
    ) -> None:
        super().__init__(message, why=why, hint=hint)
        self.sqlstate = sqlstate
        self.constraint = constraint
        self.position = position


class MigrationFailed(OperationFailed):
    """A migration's SQL failed; nothing of it was kept unless the message says so."""

    def __init__(
        self,
        message: str,
        *,
        why: str | None = None,
        hint: Hint | Sequence[Hint] = (),
        sqlstate: str | None = None,
        file: str | None = None,
        line: int | None = None,
        excerpt: str | None = None,
    ) -> None:
        super().__init__(message, why=why, hint=hint)
        self.sqlstate = sqlstate
        self.file = file
        self.line = line
        self.excerpt = excerpt


class EmbeddedServerFailed(OperationFailed):
    """The embedded server could not be started, stopped or found."""


class PartialFailure(PosduifError):
    """Some of a fleet failed or could not be asked; the outcomes were reported."""

    exit_code = 8


class Refused(PosduifError):
    """posduif will not do this as asked."""

    exit_code = 9


class ConfirmationMissing(Refused):
    """A destructive command lacks its --confirm."""


class UnsafeServer(Refused):
    """The server's settings would break the isolation of tenants."""


class SuperuserSession(Refused):
    """A superuser's session would run strangers' code with a superuser's rights."""


class Busy(PosduifError):
    """Someone else holds the lock, or blocks."""

    exit_code = 10


class Blocked(Busy):
    """A table lock timed out (55P03), or PostgreSQL resolved a deadlock against us (40P01).

    *anonymous* is true until the blocking sessions were looked up; *roles* are theirs.
    """

    anonymous = False
    roles: frozenset[str] = frozenset()


class Interrupted(PosduifError):
    """The user interrupted the command."""

    exit_code = 130


def bug(error: Exception) -> PosduifError:
    """Return the error to show for an exception that posduif did not expect; that one is its cause."""
    found = PosduifError(
        f"a bug in posduif: {type(error).__name__}",
        why=str(error).splitlines()[0][:200] if str(error) else None,
        hint="run it again with --debug and report what it prints",
    )
    found.__cause__ = error
    return found
