"""Each mend of `test_situations` taken back: the test that holds it must fail."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import test_situations as held
import torch
from torch import Tensor

import rayinf
from rayinf.api import trim
from rayinf.core import blocks, fisher, gaps, inverse, kfac, mixed_derivatives, outputs
from rayinf.core import influence as products
from rayinf.data import labels
from rayinf.engine import curvature, fit_quality, label_order, pipeline, probe, scoring, worker
from rayinf.errors import RayinfError
from rayinf.pareto import ceiling

pytestmark = pytest.mark.filterwarnings("ignore::rayinf.errors.FitWarning")
Patch = pytest.MonkeyPatch


def fails(test: Callable[..., Any], *given: Any) -> None:
    """A test of the table fails: by an assertion, by pytest, or by an error that it does not expect."""
    with pytest.raises((AssertionError, RayinfError, pytest.fail.Exception, RuntimeError, KeyError)):
        test(*given)


def unrecognised(patch: Patch) -> None:
    patch.setattr(probe, "find_outputs", lambda *_: outputs.Outputs())


@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "ggn"])
def test_log_probabilities_taken_for_logits(monkeypatch: Patch, curvature: str) -> None:
    unrecognised(monkeypatch)
    monkeypatch.setattr(probe, "check_curvature", lambda *_: None)
    monkeypatch.setattr(products, "check_flat", lambda *_: None)
    fails(held.test_influence_is_that_of_the_logits, "NLLLoss", curvature, "true")
    fails(held.test_influence_is_that_of_the_logits, "weighted", curvature, "true")


def test_probabilities_taken_for_logits(monkeypatch: Patch) -> None:
    unrecognised(monkeypatch)
    fails(held.test_gaps_are_those_of_the_logits, "probabilities")
    fails(held.test_acquisition_is_that_of_the_logits, "probabilities", "entropy")
    fails(held.test_measures_are_those_of_the_logits, "probabilities", "ekfac")
    fails(held.test_probabilities_with_the_loss_of_logits_are_refused)
    fails(held.test_probabilities_that_a_loss_does_not_explain_are_not_taken_for_logits, "entropy")


def test_probabilities_of_two_users_confused(monkeypatch: Patch) -> None:
    """The user's function gets the logarithm, or the package's own the probabilities."""
    monkeypatch.setattr(outputs.Outputs, "rows", lambda self, given: given)
    fails(held.test_a_users_function_takes_what_the_model_returns)


def test_the_packages_own_function_given_probabilities(monkeypatch: Patch) -> None:
    monkeypatch.setattr(gaps._Probability, "takes_logits", False)
    fails(held.test_gaps_are_those_of_the_logits, "probabilities")


def test_normalised_by_chance(monkeypatch: Patch) -> None:
    monkeypatch.setattr(outputs, "_shrunk", lambda model, x, given: given)
    fails(held.test_sure_logits_are_not_taken_for_log_probabilities)


def test_a_loss_believed_on_few_rows(monkeypatch: Patch) -> None:
    """Agreement on the probe's own rows is no proof."""

    def on_rows(loss: Any, given: Tensor, kind: str, weighted: bool = False) -> bool:
        y = given.argmax(1)
        log_p = given.log() if kind == "probabilities" else given
        return bool(torch.allclose(loss(given, y), -log_p.gather(1, y[:, None])[:, 0]))

    monkeypatch.setattr(outputs, "_is_negative", on_rows)
    fails(held.test_a_loss_that_is_cut_off_is_not_taken_for_cross_entropy, "logarithm")


def test_curvature_unchecked(monkeypatch: Patch) -> None:
    monkeypatch.setattr(probe, "check_curvature", lambda *_: None)
    fails(held.test_a_loss_without_curvature_is_refused, held.margin, "ggn")


@pytest.mark.parametrize("verb", ["influence", "self_influence", "influence_measure"])
def test_flat_layers_unchecked(monkeypatch: Patch, verb: str) -> None:
    for module in (products, mixed_derivatives):
        monkeypatch.setattr(module, "check_flat", lambda *_: None)
    fails(held.test_a_layer_without_curvature_is_refused_by_name, verb, "ekfac")


def test_gradients_with_cancellation(monkeypatch: Patch) -> None:
    def rounded(loss: Any, logits: Tensor, y: Tensor, name: str = "") -> tuple[Tensor, Tensor]:
        return fisher.logit_gradient(loss if callable(loss) else held.cross_entropy, logits, y)

    monkeypatch.setattr(fisher, "loss_gradient", rounded)
    fails(held.test_a_sure_network_has_the_values_of_float64, 3e3, torch.float32)


def test_users_losses_in_float32(monkeypatch: Patch) -> None:
    monkeypatch.setattr(fisher, "_precise", lambda loss, logits: logits)
    fails(held.test_a_users_cross_entropy_keeps_the_values_of_sure_rows)


def test_gradients_not_carried(monkeypatch: Patch) -> None:
    monkeypatch.setattr(fisher, "_power_of_two", lambda size: torch.ones_like(size, dtype=torch.float64))
    fails(held.test_a_sure_network_has_the_values_of_float64, 3e3, torch.float32)


def test_queries_not_carried(monkeypatch: Patch) -> None:
    monkeypatch.setattr(inverse, "out_of_range", lambda queries: False)
    fails(held.test_a_sure_network_has_the_values_of_float64, 3e3, torch.float32)


def test_scale_forgotten(monkeypatch: Patch) -> None:
    """Squares count with the square of their scale."""
    right = kfac.scaled
    monkeypatch.setattr(kfac, "scaled", lambda sums, scale, prefix, power=2: right(sums, scale, prefix, 1))
    monkeypatch.setattr(fisher, "LEAST_GRADIENT", 10.0)
    fails(held.test_a_sure_network_has_the_textbook_values, "ekfac")


def test_zeros_returned(monkeypatch: Patch) -> None:
    monkeypatch.setattr(fit_quality, "check_values", lambda train: None)
    fails(held.test_values_that_are_all_zero_are_an_error, "self_influence", "identity")


def test_gaps_by_name(monkeypatch: Patch) -> None:
    right = gaps.Gap.settle

    def by_name(self: Any, known: Any) -> Any:
        kind = "demographic_parity" if self.name == "demographic_parity" else "equal_opportunity"
        return right(dataclasses.replace(self, kind=kind), known)

    monkeypatch.setattr(gaps.Gap, "settle", by_name)
    fails(held.test_a_gap_is_the_same_under_any_name, "demographic_parity", lambda make: make(group="sex").named("dp"))


def test_signs_by_name(monkeypatch: Patch) -> None:
    monkeypatch.setattr(pipeline, "metadata", without(pipeline.metadata, "signed"))
    assert "fi" in trim.UNSIGNED
    fails(held.test_an_objective_called_fi_has_a_sign)


def without(function: Callable[..., dict[str, Any]], key: str) -> Callable[..., dict[str, Any]]:
    return lambda *given: {k: v for k, v in function(*given).items() if k != key}


def test_frozen_layers_valued(monkeypatch: Patch) -> None:
    right = blocks._blocks
    monkeypatch.setattr(blocks, "_blocks", lambda model, wanted: right(model, {n for n, _ in model.named_parameters()}))
    fails(held.test_a_frozen_bias_is_left_out_of_its_layer)
    fails(held.test_what_is_frozen_and_what_is_named)


def test_fit_quality_of_the_first_shard(monkeypatch: Patch, tmp_path: Path) -> None:
    right = fit_quality.of_shards
    monkeypatch.setattr(pipeline, "of_shards", lambda schemas: right(list(schemas)[:1]))
    fails(held.test_fit_quality_survives_a_resume, "influence", tmp_path, monkeypatch)


def test_fit_quality_of_what_was_done_now(monkeypatch: Patch, tmp_path: Path) -> None:
    """Sums that one worker keeps for itself are those of the last shard, or of all since it began."""
    made = fit_quality.FitSums(held.CLASSES)
    monkeypatch.setattr(scoring, "FitSums", lambda classes: made)
    fails(held.test_fit_quality_survives_a_resume, "influence", tmp_path, monkeypatch)


@pytest.mark.parametrize("misfit", held.MISFITS)
def test_misfits_unsaid(monkeypatch: Patch, misfit: str) -> None:
    monkeypatch.setattr(fit_quality, "problems", lambda *_: [])
    fails(held.test_a_model_that_does_not_fit_is_warned_of, misfit, "influence")


def test_order_unchecked(monkeypatch: Patch) -> None:
    monkeypatch.setattr(label_order, "check_order", lambda *_: None)
    fails(held.test_an_order_that_does_not_fit_is_refused, ["spam", "ham"], "'spam', 'ham'")


def test_order_of_text(monkeypatch: Patch) -> None:
    monkeypatch.setattr(labels, "_in_order", sorted)
    monkeypatch.setattr(labels, "_writes", lambda *_: False)
    fails(held.test_an_order_that_fits_is_taken, [str(k) for k in range(12)])


def test_shift_unseen(monkeypatch: Patch) -> None:
    monkeypatch.setattr(labels, "_shifted", lambda *_: 0)
    fails(held.test_labels_from_1_whose_highest_class_is_missing, [1, 2, 3])


def test_order_judged_where_it_was_found(monkeypatch: Patch) -> None:
    """Without a threshold on skill, models that know nothing are refused."""
    monkeypatch.setattr(labels, "_SKILL", -9.0)
    monkeypatch.setattr(labels, "_BETTER", 0.0)
    monkeypatch.setattr(labels, "_ERRORS", 0.0)
    refused = 0
    for seed in range(6):
        try:
            held.test_no_order_is_refused_of_a_model_that_knows_nothing(seed, 3)
        except rayinf.InputError:
            refused += 1
    assert refused


def test_sample_from_the_front(monkeypatch: Patch) -> None:
    right = label_order.pieces
    monkeypatch.setattr(label_order, "pieces", lambda table: right(table)[:1])
    fails(held.test_a_table_that_is_sorted_by_label_is_sampled_all_over, True)


def test_classes_dropped_from_the_cross_fit(monkeypatch: Patch) -> None:
    right, module = ceiling.find, importlib.import_module("rayinf.api.ceiling")
    monkeypatch.setattr(module, "find", lambda *given: dataclasses.replace(right(*given), in_halves=None))
    fails(held.test_a_class_with_one_validation_row_is_named_in_the_verdict)


def test_tied_weights_by_name(monkeypatch: Patch) -> None:
    monkeypatch.setattr(blocks, "_shared", lambda *_: "")
    fails(held.test_a_tied_head_is_found_and_named, ["head"])


def test_names_guessed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(blocks, "_owners", lambda model: "stem")
    fails(held.test_a_name_that_is_no_module_is_answered_with_those_that_are)


def test_compiled_models_kept(monkeypatch: Patch) -> None:
    """A backend that writes no C++: the graphs are those of the usual one."""
    from rayinf import task

    monkeypatch.setattr(task, "uncompiled", lambda model: model)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    fails(held.test_a_compiled_model_is_valued_as_what_it_was_made_of, "whole")


def test_rows_that_cannot_be_written(monkeypatch: Patch, tmp_path: Path) -> None:
    right = worker.Worker.input

    def locked(self: Any, x: Any) -> Any:
        transform = self.job.task.transform
        return right(self, x) if transform is None else self._convert(transform(x))

    monkeypatch.setattr(worker.Worker, "input", locked)
    with pytest.raises((AssertionError, RayinfError, ValueError)):
        held.test_a_transform_may_write_into_its_rows(tmp_path)


def test_minimum_unchecked(monkeypatch: Patch) -> None:
    monkeypatch.setattr(pipeline, "check_minimum", lambda run, damping: None)
    fails(held.test_a_network_that_is_not_at_a_minimum_is_refused_early, monkeypatch)


def test_share_of_zero_percent(monkeypatch: Patch) -> None:
    monkeypatch.setattr(inverse, "shown", lambda name: name)
    fails(held.test_a_singular_curvature_names_its_layer_and_its_share)


def test_curvature_of_every_layer_unchecked(monkeypatch: Patch) -> None:
    monkeypatch.setattr(curvature, "check_curved", lambda *_: None)
    monkeypatch.setattr(fit_quality, "check_values", lambda train: None)
    fails(held.test_values_that_are_all_zero_are_an_error, "self_influence", "ekfac")
