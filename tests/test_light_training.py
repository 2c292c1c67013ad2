"""Training light: each film takes several turns, and what the frozen encoders gave for it is remembered."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from deixis.systems.light import Light, light_debug, light_debug_config
from deixis.training.encoded_clips import Memory
from deixis.training.recipes.light import LightData, film_number
from deixis.types import DeixisError

DATA = LightData(frames=(2, 3), sizes=(64, 64, 64, 96), pool=16, uses=3)


def numbers(first: int, last: int) -> list[tuple[int, int]]:
    return [film_number(DATA, 4, 7, index) for index in range(first, last)]


def test_every_film_of_a_chunk_is_used_as_often_as_asked_before_new_ones_come() -> None:
    chunk = numbers(0, 16 * 3)
    assert set(Counter(chunk).values()) == {3}
    assert len(set(chunk)) == 16
    assert not set(chunk) & set(numbers(16 * 3, 2 * 16 * 3))


def test_all_films_of_a_batch_have_one_shape_and_a_film_always_has_the_same() -> None:
    found = numbers(0, 96)
    assert all(len({lane for _, lane in found[i : i + 4]}) == 1 for i in range(0, 96, 4))
    assert len(set(found)) == len({number for number, _ in found})


def test_rounds_go_through_the_films_in_different_orders() -> None:
    first, second = numbers(0, 16), numbers(16, 32)
    assert sorted(first) == sorted(second)
    assert first != second


def test_sizes_that_do_not_fit_the_frames_are_refused() -> None:
    with pytest.raises(DeixisError, match=r"a height and a width for each of the 2 data\.frames, got 2 numbers"):
        LightData(frames=(2, 3), sizes=(64, 64))


def test_what_is_remembered_is_what_the_encoders_would_give_again() -> None:
    torch.manual_seed(0)
    system = light_debug()
    pixels = torch.randint(0, 255, (2, 3, 3, 64, 64), dtype=torch.uint8)
    frames = pixels.float() / 255
    memory = Memory(8)
    first = memory.encode_frames(system, frames, pixels).deep
    again = memory.encode_frames(system, frames.flip(0), pixels.flip(0)).deep
    plain = system.encode_frames(frames.flatten(0, 1)).deep
    assert torch.allclose(first, plain, atol=1e-5)
    assert torch.equal(first.unflatten(0, (2, 3)), again.unflatten(0, (2, 3)).flip(0))
    assert len(memory.known) == 2


def test_only_so_many_films_are_remembered() -> None:
    system, memory = light_debug(), Memory(2)
    for seed in range(4):
        torch.manual_seed(seed)
        pixels = torch.randint(0, 255, (1, 1, 3, 64, 64), dtype=torch.uint8)
        memory.encode_frames(system, pixels.float(), pixels)
    assert len(memory.known) == 2


def test_encoders_that_train_run_anew_and_get_gradients() -> None:
    system, memory = Light(replace(light_debug_config(), train_vision=True)), Memory(4)
    pixels = torch.randint(0, 255, (1, 1, 3, 64, 64), dtype=torch.uint8)
    memory.encode_frames(system, pixels.float() / 255, pixels).deep.sum().backward()
    assert not memory.known
    assert any(p.grad is not None for p in system.tiny_vit.parameters())
