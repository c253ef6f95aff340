"""The thread that plans, for one client after the other, and what the policy remembers of each."""

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from apprentice.serve.checkpoint import Checkpoint
from apprentice.serve.requests import Request

# What `reset` begins anew lies in attributes of these policies, none in a module inside. Others have one client.
COPIED = ("act", "apprentice", "diffusion", "multi_task_dit", "seer", "seer_full", "smolvla", "tdmpc", "vqbet")
NOT_MEMORY = {*vars(nn.Module()), "config"}


@dataclass
class Session:
    """What a policy knows of one client: its random numbers, what it remembers, and the instruction before.

    `memory` is None at the beginning of an episode, `random` at that of the first. `paid` is when, in seconds of
    planning, its next plan is due.
    """

    seed: int
    random: tuple[torch.Tensor, list[torch.Tensor]] | None = None
    memory: dict[str, Any] | None = None
    instruction: str | None = None
    paid: float = 0.0

    def begin(self) -> None:
        """Forget what was before; random numbers go on."""
        self.memory, self.instruction = None, None


class Planner:
    """Plans in a thread of its own. The process need not wait for it to end.

    The next plan is that of the client for whom it planned the least (start-time fair queueing, Goyal et al. 1996): a
    question waits for at most one plan of each other client.
    """

    def __init__(self, policy: Checkpoint, remembers: bool):
        self.policy, self.remembers = policy, remembers
        self._fixed: dict[int, Any] = {}  # what a copy of the memory shares: modules and weights
        for module in policy.policy.modules():
            self._fixed[id(module)] = module
            self._fixed |= {id(tensor): tensor for tensor in (*module._parameters.values(), *module._buffers.values())}
        policy.policy.reset()
        self._blank = self._copied(self._memory()) if remembers else {}  # of an episode that begins
        self._jobs = queue.PriorityQueue[tuple[float, int, Callable[[], None]]]()
        self._now, self._number = 0.0, itertools.count()
        threading.Thread(target=self._work, name="planner", daemon=True).start()

    async def plan(
        self, episode: Session, question: Request, wanted: Callable[[], bool]
    ) -> tuple[np.ndarray, float] | None:
        """Actions (N, A) and the seconds that they took, or None if by then nobody wants them.

        Raises what the policy raises; then the episode is as it was before.
        """
        loop = asyncio.get_running_loop()
        answer = loop.create_future()

        def settle(found: Any, error: BaseException | None) -> None:
            if not answer.done():
                answer.set_result(found) if error is None else answer.set_exception(error)

        begins = max(self._now, episode.paid)

        def job() -> None:
            found, error, start = None, None, time.perf_counter()
            try:
                found = self._plan(episode, question) if wanted() else None
            except Exception as raised:
                error = raised
            episode.paid = begins + time.perf_counter() - start
            with suppress(RuntimeError):  # the server is closed
                loop.call_soon_threadsafe(settle, found, error)

        self._jobs.put((begins, next(self._number), job))
        return await answer

    def _work(self) -> None:
        while True:
            self._now, _, job = self._jobs.get()
            job()

    def _plan(self, episode: Session, question: Request) -> tuple[np.ndarray, float]:
        if question.reset:
            episode.begin()
        if episode.random is None:
            torch.manual_seed(episode.seed)
        else:
            torch.set_rng_state(episode.random[0])
            torch.cuda.set_rng_state_all(episode.random[1])
        if self.remembers:
            memory = episode.memory if question.instruction == episode.instruction else None
            self._remember(self._blank if memory is None else memory)
        start = time.perf_counter()
        actions = self.policy.plan(question.observation, question.instruction)
        passed = time.perf_counter() - start
        episode.random = torch.get_rng_state(), torch.cuda.get_rng_state_all()
        episode.instruction = question.instruction
        episode.memory = self._memory() if self.remembers else None
        return actions, passed

    def _remember(self, memory: dict[str, Any]) -> None:
        """Put the policy where a client left it. It gets a copy: if the plan fails, the client's is as it was."""
        own = vars(self.policy.policy)
        for name in self._memory().keys() - memory.keys():
            del own[name]
        own.update(self._copied(memory))

    def _copied(self, memory: dict[str, Any]) -> dict[str, Any]:
        with torch.inference_mode():
            return deepcopy(memory, dict(self._fixed))

    def _memory(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.policy.policy).items() if name not in NOT_MEMORY}
