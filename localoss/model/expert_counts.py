"""What a cache of experts did, in numbers."""

from dataclasses import dataclass


@dataclass
class Counts:
    """What a cache did in some passes. Wanted experts were there (hits) or had to be read (misses); `ahead`
    were read before a layer wanted them. waited_s: how long of pass_s nothing could be computed, for a read
    was under way. reading_s: how long at least one was.
    """

    tokens: int = 0
    pass_s: float = 0.0
    hits: int = 0
    misses: int = 0
    ahead: int = 0
    read_bytes: int = 0
    waited_s: float = 0.0
    reading_s: float = 0.0

    def figures(self) -> dict[str, float]:
        """For reports: shares and rates."""
        wanted, tokens = max(self.hits + self.misses, 1), max(self.tokens, 1)
        return {
            "tokens": self.tokens,
            "hits": self.hits,
            "misses": self.misses,
            "read_ahead": self.ahead,
            "hit_rate": round(self.hits / wanted, 4),
            "read_bytes": self.read_bytes,
            "read_bytes_per_token": round(self.read_bytes / tokens),
            "read_bytes_per_s": round(self.read_bytes / self.reading_s) if self.reading_s else 0,
            "waiting_share": round(self.waited_s / self.pass_s, 4) if self.pass_s else 0.0,
        }
