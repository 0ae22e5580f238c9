"""The step of gravity_jax.gravity and of optax's Adam, jitted, with donated buffers.

python -m benchmarks.step --backend jax                         the step
python -m benchmarks.jax_step [--case resnet50] [--rounds 5]    tracing and compiling it
"""

import os
from collections.abc import Callable
from typing import Any

import click

from benchmarks.shapes import CASES, Shape, gradients

Step = Callable[[], Any]


def _steps(shapes: list[Shape], threads: int) -> dict[str, tuple[Any, Any, Any, Any]]:
    """Return for every contender its jitted step and the arguments: params, state, gradients."""
    # XLA's CPU client reads the size of its thread pool from it at the first use of JAX.
    os.environ["NPROC"] = str(threads)
    import jax
    import jax.numpy as jnp
    import optax

    from gravity_jax import gravity

    grads = [jnp.asarray(g) for g in gradients(shapes)]

    def optimizer_step(optimizer: Any) -> tuple[Any, Any, Any, Any]:
        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params = [jnp.zeros(s) for s in shapes]
        return jax.jit(step, donate_argnums=(0, 1)), params, optimizer.init(params), grads

    def plain(params: Any, state: Any, grads: Any) -> Any:
        t, velocity = state[0] + 1, []
        beta_hat = (0.9 * t + 1) / (t + 2)
        for g, v in zip(grads, state[1], strict=True):
            m = 1 / jnp.max(jnp.abs(g))
            velocity.append(beta_hat * v + (1 - beta_hat) * g / (1 + (g / m) ** 2))
        return [w - 0.1 * v for w, v in zip(params, velocity, strict=True)], (t, velocity)

    zeros = [[jnp.zeros(s) for s in shapes] for _ in range(2)]
    state = jnp.zeros([], jnp.int32), zeros[1]
    return {
        "optax.adam()": optimizer_step(optax.adam(1e-3)),
        "gravity_jax.gravity()": optimizer_step(gravity()),
        "the plain formula": (jax.jit(plain, donate_argnums=(0, 1)), zeros[0], state, grads),
    }


def contenders(shapes: list[Shape], threads: int) -> dict[str, Step]:
    """Return the steps of optax's Adam, Gravity and the plain formula."""
    import jax

    def timed(step: Any, params: Any, state: Any, grads: Any) -> Step:
        carry = [params, state]

        def run() -> None:
            carry[:] = jax.block_until_ready(step(*carry, grads))

        return run

    return {name: timed(*step) for name, step in _steps(shapes, threads).items()}


def compilations(shapes: list[Shape], threads: int) -> dict[str, Step]:
    """Return for every contender a function that traces and compiles its step again."""
    import jax

    def timed(step: Any, *arguments: Any) -> Step:
        def run() -> None:
            jax.clear_caches()
            step.lower(*arguments).compile()

        return run

    return {name: timed(*step) for name, step in _steps(shapes, threads).items()}


@click.command()
@click.option("--case", type=click.Choice(list(CASES)), default="resnet50", show_default=True)
@click.option("--rounds", type=click.IntRange(min=2), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def main(case: str, rounds: int, threads: int) -> None:
    """Time the tracing and compilation of one step relative to optax's Adam, interleaved."""
    from benchmarks.step import measure, summarise

    for name, result in summarise(measure(compilations(CASES[case], threads), rounds)).items():
        lower, upper = result["quartiles"]
        click.echo(f"{name:24} {result['ratio']:.2f} ({lower:.2f}–{upper:.2f}) of optax.adam()'s")


if __name__ == "__main__":
    main()
