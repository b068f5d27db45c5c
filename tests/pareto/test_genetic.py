"""Populations: their parts, their bounds, and draws that hang on seed, generation and slot alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rayinf.pareto.genetic import Breeding, grid

TABLE_2 = Breeding(classes=10)


def ranked(breeding: Breeding, seed: int = 3) -> np.ndarray:
    return breeding.first(seed)[np.random.default_rng(0).permutation(breeding.size)]


def test_table_2():
    assert TABLE_2.size == 24 and (TABLE_2.elites, TABLE_2.mutated_elites) == (6, 6)
    assert (TABLE_2.randoms, TABLE_2.crossover_children) == (6, 6)
    assert (TABLE_2.crossover_rate, TABLE_2.mutation_rate, TABLE_2.strength) == (1.0, 0.25, 0.25)


def test_first_alphas_are_uniform_in_half_to_one_and_radii_spread_evenly():
    found = np.concatenate([np.delete(TABLE_2.first(seed), 8, 0) for seed in range(200)])
    alphas, radii = found[:, :10], found[:, 10]
    assert alphas.min() >= 0.5 and alphas.max() <= 1.0
    assert abs(alphas.mean() - 0.75) < 0.005 and abs(alphas.std() - 0.5 / 12**0.5) < 0.003
    assert radii.min() > 0 and radii.max() <= 1
    one = np.sort(TABLE_2.first(7)[:, 10])
    assert ((np.arange(24) / 24 <= one) & (one <= np.arange(1, 25) / 24)).all()  # one in each of 24 parts


def test_one_candidate_asks_for_no_loss_of_any_class():
    asks = (TABLE_2.first(5)[:, :10] == 1.0).all(1)
    assert asks.sum() == 1 and 0.3 < TABLE_2.first(5)[asks, 10] < 0.4


def test_elites_stay_in_order():
    population = ranked(TABLE_2)
    following = TABLE_2.following(population, 3, 1)
    assert following.shape == (24, 11)
    np.testing.assert_array_equal(following[:6], population[:6])


def test_every_mutated_elite_differs_from_its_parent_and_stays_inside():
    population, changed = ranked(TABLE_2), []
    for g in range(1, 200):
        following = TABLE_2.following(population, 3, g)
        mutated = following[6:12]
        assert (mutated != population[:6]).any(1).all()
        assert (mutated[:, :10] >= 0).all() and (mutated[:, :10] <= 2).all()
        assert (mutated[:, 10] > 0).all() and (mutated[:, 10] <= 1).all()
        changed.append(mutated != population[:6])
    # A quarter of the genes, and a little more: a candidate in which none was hit gets one.
    share = np.mean(changed)
    none = 0.75**11
    assert abs(share - (0.25 + none / 11)) < 0.01


def test_mutation_adds_a_normal_of_the_strength():
    breeding = Breeding(classes=2, mutation_rate=1.0, upper=100.0)
    parent = np.array([[50.0, 50.0, 0.01]] * 24)
    found = np.concatenate([breeding.following(parent, 0, g)[6:12] for g in range(1, 300)])
    steps, factors = found[:, :2] - 50, np.log(found[:, 2] / 0.01)
    assert abs(steps.mean()) < 0.02 and abs(steps.std() - 0.25) < 0.01
    assert abs(factors.mean()) < 0.03 and abs(factors.std() - 0.4) < 0.02


def test_alphas_are_clipped_to_the_bound():
    breeding = Breeding(classes=3, mutation_rate=1.0, strength=5.0, upper=1.5)
    mutated = np.concatenate([breeding.following(ranked(breeding), 0, g)[6:12, :3] for g in range(1, 50)])
    assert mutated.min() == 0.0 and mutated.max() == 1.5
    assert Breeding(classes=3, upper=0.7).first(0)[:, :3].max() <= 0.7


def test_children_take_each_gene_from_either_parent():
    population = np.arange(24 * 11, dtype=float).reshape(24, 11)  # every gene shows where it comes from
    rows, mixed = [], 0
    for g in range(1, 100):
        for child in TABLE_2.following(population, 1, g)[18:]:
            parents = set((child // 11).astype(int))
            np.testing.assert_array_equal(child % 11, np.arange(11))
            assert 1 <= len(parents) <= 2
            mixed += len(parents) == 2
            rows += sorted(parents)
    assert mixed > 0.8 * 594
    assert np.mean(rows) < 0.75 * 11.5  # the better of two draws: about a third of the way down


def test_without_crossover_children_are_copies():
    population = ranked(TABLE_2)
    children = replace(TABLE_2, crossover_rate=0.0).following(population, 1, 1)[18:]
    assert all((population == child).all(1).any() for child in children)


def test_draws_hang_on_seed_generation_and_slot_alone():
    population = ranked(TABLE_2)
    first = TABLE_2.following(population, 3, 4)
    np.random.default_rng(0).uniform(size=100)
    np.testing.assert_array_equal(first, TABLE_2.following(population.copy(), 3, 4))
    for seed, generation in ((4, 4), (3, 5)):
        other = TABLE_2.following(population, seed, generation)
        assert (first[6:] != other[6:]).any(1).all()
    # More elites do not move what is drawn for the slots after them, but for what is taken from the population.
    shifted = replace(TABLE_2, randoms=5, crossover_children=7).following(population, 3, 4)
    np.testing.assert_array_equal(first[:12], shifted[:12])


@pytest.mark.parametrize("few", [1, 2])
def test_few_different_candidates_fill_a_population(few):
    following = TABLE_2.following(ranked(TABLE_2)[:few], 0, 1)
    assert following.shape == (24, 11)


def test_without_a_radius_there_is_no_gene_for_it():
    breeding = Breeding(classes=4, radius=False)
    assert breeding.first(0).shape == (24, 4)
    assert breeding.following(breeding.first(0), 0, 1).shape == (24, 4)


def test_a_sweep_is_every_alpha_of_a_line_with_every_radius():
    assert grid(8, 3, True).tolist() == [
        [alpha] * 3 + [radius] for radius in (0.125, 0.375, 0.625, 0.875) for alpha in (1.0, 0.75)
    ]
    assert grid(3, 2, False).tolist() == [[0.75, 0.75], [0.875, 0.875], [1.0, 1.0]]
    for size in (1, 7, 24, 366):
        found = grid(size, 10, True)
        assert found.shape == (size, 11) and len(np.unique(found, axis=0)) == size
        assert (found[:, :10] == found[:, :1]).all() and found[:, 10].min() > 0 and found[:, 10].max() <= 1
    assert len(np.unique(grid(366, 10, True)[:, 0])) == 8
    swept = replace(TABLE_2, sweep=True, upper=0.8)
    np.testing.assert_array_equal(swept.first(0), np.minimum(grid(24, 10, True), [0.8] * 10 + [1.0]))
    np.testing.assert_array_equal(swept.first(0), swept.first(1))
    assert replace(TABLE_2, sweep=True, radius=False).first(0).shape == (24, 10)
