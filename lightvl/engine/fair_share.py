"""Whose turn it is when several clients have requests waiting; torch-free.

Start-time fair queueing: a client's requests are lined up on a clock that counts tokens. Each
begins where the client's one before it ends, but not before the clock, which stands where the
last admitted request began. Clients that wait together so get equal shares of tokens, whoever
sends more or larger requests; a client that comes late has saved nothing up; and one client alone
is served first come, first served.

Source: Goyal, Vin and Cheng, "Start-time Fair Queueing", SIGCOMM 1996.
"""


class FairShare:
    """The clock, and where each client's last request ends on it."""

    def __init__(self) -> None:
        self._now = 0
        self._ends: dict[bytes, int] = {}

    def line_up(self, client: bytes, num_tokens: int) -> int:
        """Returns where a request begins; smaller ones are admitted earlier.

        Args:
            client: Who sent it.
            num_tokens: Of its prompt; what it generates is charged later.
        """
        begin = max(self._now, self._ends.get(client, 0))
        self._ends[client] = begin + num_tokens
        return begin

    def admit(self, begin: int) -> None:
        """A request that begins there is computed from now on."""
        self._now = max(self._now, begin)

    def charge(self, client: bytes, num_tokens: int) -> None:
        """Makes a client's next requests begin later by what one of them generated."""
        self._ends[client] = self._ends.get(client, 0) + num_tokens
