"""The order in which the peer visits rows: torch.randperm on a CPU generator seeded with seed + epoch."""
import hashlib

from common import FIXTURES, write_json


class Mt19937:
    """The Mersenne Twister, as torch seeds and draws it."""

    def __init__(self, seed):
        self.s = [seed & 0xFFFFFFFF]
        for i in range(1, 624):
            self.s.append((1812433253 * (self.s[-1] ^ (self.s[-1] >> 30)) + i) & 0xFFFFFFFF)
        self.at = 624

    def random(self):
        if self.at == 624:
            s = self.s
            for i in range(624):
                y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7FFFFFFF)
                s[i] = s[(i + 397) % 624] ^ (y >> 1) ^ (0x9908B0DF if y & 1 else 0)
            self.at = 0
        y = self.s[self.at]
        self.at += 1
        y ^= y >> 11
        y ^= (y << 7) & 0x9D2C5680
        y ^= (y << 15) & 0xEFC60000
        return y ^ (y >> 18)


def replica(n, seed):
    """Fisher-Yates from the front: place i takes a place drawn from those not yet settled."""
    gen, r = Mt19937(seed), list(range(n))
    for i in range(n - 1):
        z = gen.random() % (n - i)
        r[i], r[i + z] = r[i + z], r[i]
    return r


def make():
    import torch
    out = []
    for n in (1, 2, 8, 10, 100, 1000, 30000):
        for epoch in range(3):
            seed = 42 + epoch
            order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
            assert order == replica(n, seed), (n, seed)
            out.append({"n": n, "seed": seed, "epoch": epoch, "first": order[:20],
                        "sha256": hashlib.sha256(",".join(map(str, order)).encode()).hexdigest()})
    write_json(FIXTURES / "randperm.json", {"torch": torch.__version__, "orders": out}, indent=1)
    print(f"randperm: {len(out)} orders, each equal to the replica's")
