"""Milliseconds per update and run: ours alone, ours in a pack of eight, PyTorch eager and compiled.

    python -m tests.benchmarks.update [ROUNDS]        (needs torch for its two sides)

Width 64, depth 3, 4 heads, sequences of 128, 8 of them, vocabulary 256, float32, Adam, gradient clipping on both sides,
on the CPU that is there. The PyTorch model has the same layers: RMSNorm, rotary attention with QK-norm, GELU, own head.
"""

from __future__ import annotations

import sys

from tests.benchmarks.measure import timed

WIDTH, DEPTH, HEADS, LENGTH, BATCH, VOCABULARY = 64, 3, 4, 128, 8, 256
WARM = 10


def ours(runs: int) -> float:
    """Milliseconds per update and run of a pack of `runs` runs."""
    from lab.train import backend

    backend.configure(runs)
    import jax

    from lab.config import default_config, override, validate, with_vocabulary
    from lab.train.pack import Member, Pack
    from tests.benchmarks.measure import RandomCorpus

    tokens = LENGTH * BATCH
    settings = {
        "model.width": WIDTH,
        "model.depth": DEPTH,
        "model.heads": HEADS,
        "model.sequence_length": LENGTH,
        "model.vocab_size": VOCABULARY,
        "run.batch_tokens": tokens,
        "run.horizon_tokens": 10**7,
        "execution.microbatch_tokens": tokens,
        "execution.noise_probe_ticks": 0,
    }
    base = override(default_config(), settings)
    configs = [validate(override(base, {"optimizer.learning_rate": 1e-3 * (i + 1)})) for i in range(runs)]
    members = [Member.of(str(i), with_vocabulary(cfg, VOCABULARY)) for i, cfg in enumerate(configs)]
    pack = Pack(members, RandomCorpus(VOCABULARY))
    pack.start()
    jax.block_until_ready(pack.advance(WARM))
    ticks = 24
    return timed(lambda: jax.block_until_ready(pack.advance(ticks))) / (ticks * runs)


def torch_side(compiled: bool) -> float:
    """Milliseconds per update of the PyTorch model."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)
    half = WIDTH // HEADS // 2
    angle = torch.arange(LENGTH)[:, None] * 10000.0 ** (-torch.arange(half) / half)
    cosine, sine = angle.cos(), angle.sin()

    def rotate(x):
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.between = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
            self.q_norm, self.k_norm = nn.RMSNorm(WIDTH // HEADS), nn.RMSNorm(WIDTH // HEADS)
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
            self.out = nn.Linear(WIDTH, WIDTH, bias=False)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

        def forward(self, x):
            shape = (x.shape[0], LENGTH, HEADS, WIDTH // HEADS)
            q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(self.before(x)).split(WIDTH, -1))
            q, k = rotate(self.q_norm(q)), rotate(self.k_norm(k))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
            return x + self.down(F.gelu(self.up(self.between(x)), approximate="tanh"))

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(VOCABULARY, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
            self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

        def forward(self, tokens):
            x = self.embed(tokens[:, :-1])
            for block in self.blocks:
                x = block(x)
            return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), tokens[:, 1:].flatten())

    model = Decoder()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = [torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1)) for _ in range(8)]

    def updates(count: int) -> None:
        for index in range(count):
            optimizer.zero_grad(set_to_none=True)
            forward(batches[index % 8]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    updates(WARM)
    ticks = 24
    return timed(lambda: updates(ticks)) / ticks


SIDES = {
    "torch-compile": lambda: torch_side(True),
    "torch-eager": lambda: torch_side(False),
    "ours-alone": lambda: ours(1),
    "ours-in-pack": lambda: ours(8),
}


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in SIDES:
        print(SIDES[sys.argv[1]]())
    else:
        from tests.benchmarks.measure import interleaved, table

        rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
        print(table(interleaved("tests.benchmarks.update", list(SIDES), rounds), "torch-compile"))
