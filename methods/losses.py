"""Element-wise losses for multi-label targets.

All return a (B, K) float32 tensor, are computed in float32 (also under autocast; float64 logits
stay so) and leave the reduction to the caller; the methods here sum, as CAP and its relatives do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.base import at_least_fp32

LargeLossScheme = Literal["R", "Ct", "Cp"]
LARGE_LOSS_SCHEMES = ("R", "Ct", "Cp")


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    clip: float = 0.05,
    eps: float = 1e-8,
) -> Tensor:
    """Asymmetric loss (ASL) of Ridnik et al., ICCV 2021, as in the code of CAP and D2L.

    With p = sigmoid(logits) and q = min(1 - p + clip, 1) the loss is
    ``-[y (1-p)^gamma_pos log p + (1-y) (1-q)^gamma_neg log q]``; the logarithms' arguments are
    clamped at ``eps`` and the focal weights carry no gradient.

    Args:
        logits: (B, K) any float dtype.
        targets: (B, K) in {0, 1}; a soft target mixes the two terms.
        gamma_pos: focusing exponent of positives.
        gamma_neg: focusing exponent of negatives.
        clip: probability margin added to q, 0 for none.
        eps: smallest argument of the logarithms.

    Returns:
        (B, K) float32.

    Example:
        With p = 0.5 a positive costs log 2, a negative 0.45⁴ · -log 0.55.

        >>> asymmetric_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
        tensor([[0.6931, 0.0245]])
    """
    logits = at_least_fp32(logits)
    return _asymmetric(logits, targets.to(logits), gamma_pos, gamma_neg, clip, eps)


def pair_asymmetric_loss(
    positive: Tensor,
    negative: Tensor,
    targets: Tensor,
    gamma_pos: float = 1.0,
    gamma_neg: float = 2.0,
    clip: float = 0.05,
    eps: float = 1e-6,
) -> Tensor:
    """Asymmetric loss on the soft-max of a pair of logits, as DualCoOp (NeurIPS 2022) uses it.

    The probability of presence is softmax(negative, positive)[1] = sigmoid(positive - negative).
    Entries whose target is negative (-1 = unknown) contribute 0.

    Args:
        positive: (B, K) logits for "present".
        negative: (B, K) logits for "absent".
        targets: (B, K) in {-1, 0, 1}.
        gamma_pos: focusing exponent of positives.
        gamma_neg: focusing exponent of negatives.
        clip: probability margin of negatives.
        eps: smallest argument of the logarithms.

    Returns:
        (B, K) float32.

    Example:
        Equal logits mean p = 0.5; the third entry is unknown.

        >>> same = torch.ones(1, 3)
        >>> pair_asymmetric_loss(same, same, torch.tensor([[1, 0, -1]]))
        tensor([[0.3466, 0.1211, 0.0000]])
    """
    logits = at_least_fp32(positive) - at_least_fp32(negative)
    targets = targets.to(logits)
    loss = _asymmetric(logits, targets.clamp(min=0), gamma_pos, gamma_neg, clip, eps)
    return torch.where(targets < 0, torch.zeros_like(loss), loss)


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each entry.

    Args:
        logits: (B, K) any float dtype.
        targets: (B, K) in [0, 1].

    Returns:
        (B, K) float32.

    Example:
        >>> binary_cross_entropy(torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 0]]))
        tensor([[0.6931, 2.1269]])
    """
    logits = at_least_fp32(logits)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits), reduction="none")


def beta_loss(
    alpha: Tensor,
    beta: Tensor,
    targets: Tensor,
    gamma_neg: int = 4,
    clip: float = 0.05,
    power: float = 2.0,
) -> Tensor:
    """Asymmetric Beta loss of ABL (KDD 2024): the expected focal loss of a label with a Beta distribution.

    The probability of presence is distributed as Beta(α, β). With ψ the digamma function, m = ``clip``,
    γ = ``gamma_neg`` and α_m = max(α − m/(1 − m)·β, 0), a positive costs ψ(α + β) − ψ(α) and a negative
    w·(ψ(α_m + β + γ) − ψ(β)) with w = Π_{i<γ} (α_m + i)/(α_m + β + i), which carries no gradient: E[p^γ] for
    Beta(α_m, β). The two are mixed by y^power and (1 − y)^power. The official code (github
    hz681/AsymmetricBetaLoss, 2934e3d) has both weights, and with them the loss, in float64 by mistake.

    Args:
        alpha: (B, K) > 0, evidence for presence plus 1.
        beta: (B, K) > 0, evidence for absence plus 1.
        targets: (B, K) in [0, 1].
        gamma_neg: focusing exponent γ >= 0 of negatives (official: 4; 10 in its warm-up on VOC).
        clip: margin m in [0, 1): a negative whose mean is at most m costs nothing if γ > 0.
        power: exponent of soft targets (official: 2); without effect on targets 0 and 1.

    Returns:
        (B, K) float32.

    Example:
        Without any evidence a positive costs 1, a negative at γ = 1, m = 0 half of 1 + 1/2.

        >>> one = torch.ones(1, 2)
        >>> beta_loss(one, one, torch.tensor([[1, 0]]), gamma_neg=1, clip=0.0)
        tensor([[1.0000, 0.7500]])
    """
    alpha, beta = at_least_fp32(alpha), at_least_fp32(beta)
    targets = targets.to(alpha)
    shifted = (alpha - clip / (1 - clip) * beta).clamp(min=0)
    positive = torch.digamma(alpha + beta) - torch.digamma(alpha)
    negative = torch.digamma(shifted + beta + gamma_neg) - torch.digamma(beta)
    with torch.no_grad():
        weight = torch.ones_like(beta)
        for i in range(gamma_neg):
            weight = weight * (shifted + i) / (shifted + beta + i)
    return targets**power * positive + (1 - targets) ** power * weight * negative


def hill_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    margin: float = 1.0,
    gamma: float = 2.0,
    weight: float = 1.5,
    check: bool = True,
) -> Tensor:
    """Hill loss of Zhang et al., arXiv 2112.07368: negatives that look positive push little.

    With p = sigmoid(logits) and q = sigmoid(logits - margin), a positive costs ``-(1-q)^gamma log q`` and a
    negative ``(weight - p) p²``, which is steepest at p = 1/2 and flat again near p = 1, where a negative is
    probably a missed label. All factors carry gradients, as in the official code (github
    xinyu1205/robust-loss-mlml, dcfa4d5). Its logarithm overflows for logits below about -88, and 0 times that
    is NaN; ours stays finite.

    Args:
        logits: (B, K) any float dtype; B may be 0.
        targets: (B, K) in [0, 1]; a soft target mixes the two terms.
        margin: m, subtracted from the logit of positives.
        gamma: focusing exponent of positives.
        weight: λ of negatives.
        check: whether targets are checked; False saves reading the device where they are known to be right.

    Returns:
        (B, K) float32, or float64 for float64 logits.

    Raises:
        ValueError: another shape of targets, or one outside [0, 1].

    Example:
        With p = 0.5 a negative costs (1.5 - 0.5) / 4; the positive has q = sigmoid(-1).

        >>> hill_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
        tensor([[0.7019, 0.2500]])
    """
    logits, targets = at_least_fp32(logits), _checked("hill_loss", "targets", logits, targets, check)
    present = torch.sigmoid(logits)
    negative = (weight - present) * present**2
    return targets * _focal_margin(logits - margin, gamma) + (1 - targets) * negative


def splc_loss(
    logits: Tensor,
    targets: Tensor,
    correct: bool,
    *,
    margin: float = 1.0,
    gamma: float = 2.0,
    threshold: float = 0.6,
    check: bool = True,
) -> Tensor:
    """Focal margin loss with self-paced correction (SPLC) of Zhang et al., arXiv 2112.07368.

    A positive costs ``-(1-q)^gamma log q`` with q = sigmoid(logits - margin), a negative ``-p^gamma
    log(1-p)`` with p = sigmoid(logits). With ``correct``, a negative with p > ``threshold`` is taken for a
    missed label and costs what a positive does, but without the margin: so the official code has it (github
    xinyu1205/robust-loss-mlml, dcfa4d5), though the paper's formula uses the loss of positives, margin
    included. All factors carry gradients.

    Args:
        logits: (B, K) any float dtype; B may be 0.
        targets: (B, K) in [0, 1]; a soft target mixes the two terms, and its negative part is corrected.
        correct: whether negatives above the threshold are re-labelled.
        margin: m, subtracted from the logit of positives.
        gamma: focusing exponent.
        threshold: τ; only a larger p is corrected.
        check: whether targets are checked; False saves reading the device where they are known to be right.

    Returns:
        (B, K) float32, or float64 for float64 logits.

    Raises:
        ValueError: another shape of targets, or one outside [0, 1].

    Example:
        The second negative has p = 0.88 and becomes a positive.

        >>> logits, absent = torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2)
        >>> splc_loss(logits, absent, correct=False), splc_loss(logits, absent, correct=True)
        (tensor([[0.1733, 1.6501]]), tensor([[0.1733, 0.0018]]))
    """
    logits, targets = at_least_fp32(logits), _checked("splc_loss", "targets", logits, targets, check)
    negative = _focal_margin(-logits, gamma)
    if correct:
        missed = torch.sigmoid(logits) > threshold
        negative = torch.where(missed, _focal_margin(logits, gamma), negative)
    return targets * _focal_margin(logits - margin, gamma) + (1 - targets) * negative


def large_loss(logits: Tensor, observed: Tensor, k: int, scheme: LargeLossScheme) -> Tensor:
    """Binary cross-entropy of Kim et al. (CVPR 2022) that distrusts the largest losses of assumed negatives.

    Unobserved entries count as negatives. Those among them whose loss is at least the k-th largest
    (`large_loss_changes`) change: "R" rejects them (loss 0), "Ct" and "Cp" take the loss of a positive. Cp
    also keeps some of them as positives for good, which is the caller's memory: they are observed from then
    on.

    Args:
        logits: (B, K) any float dtype; B may be 0.
        observed: (B, K) {0, 1}: 1 = observed positive, 0 = unobserved.
        k: number of entries that change, more where losses tie; all if there are fewer, none for 0.
        scheme: "R", "Ct" or "Cp".

    Returns:
        (B, K) float32, or float64 for float64 logits.

    Raises:
        ValueError: another shape of ``observed``, a value that is neither 0 nor 1, k < 0, an unknown scheme.

    Example:
        The unobserved entry with logit 3 has the largest loss.

        >>> logits, observed = torch.tensor([[3.0, -1.0, 2.0]]), torch.tensor([[0, 0, 1]])
        >>> [large_loss(logits, observed, 1, scheme) for scheme in ("R", "Ct")]
        [tensor([[0.0000, 0.3133, 0.1269]]), tensor([[0.0486, 0.3133, 0.1269]])]
    """
    if scheme not in LARGE_LOSS_SCHEMES:
        raise ValueError(f"large_loss: scheme {scheme!r} is none of {', '.join(LARGE_LOSS_SCHEMES)}")
    changed, _ = large_loss_changes(logits, observed, k)
    if scheme == "R":
        loss = binary_cross_entropy(logits, observed)
        return torch.where(changed, torch.zeros_like(loss), loss)
    return binary_cross_entropy(logits, changed | observed.bool())


def large_loss_changes(
    logits: Tensor,
    observed: Tensor,
    k: int,
    *,
    gather: Callable[[Tensor], Tensor] | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """Find the unobserved entries whose loss as negatives is among the k largest of the batch.

    Both masks follow the official code (github snucml/LargeLossMatters, 5025d16): entries tied with the k-th
    largest change too, while only strictly larger ones, so none for k = 1, are flipped for good by the scheme
    Cp. Observed entries never change; the official code changes them too once k exceeds the number of others.

    Args:
        logits: (B, K) any float dtype; B may be 0.
        observed: (B, K) {0, 1}: 1 = observed positive, 0 = unobserved.
        k: how many, 0 or more.
        gather: function from this process's rows to the rows of all processes, such as `Batch.gather`: the k
            largest are then those of the global batch. None for one process.
        check: whether ``observed`` is checked; False saves reading the device where it is known to be right.

    Returns:
        Two (B, K) bool masks without gradients: loss at least the k-th largest, and loss larger than it. With
        fewer than k unobserved entries both hold all of them.

    Raises:
        ValueError: another shape of ``observed``, a value that is neither 0 nor 1, or k < 0.

    Example:
        The two entries with logit 2 tie as second largest.

        >>> changed, flipped = large_loss_changes(torch.tensor([[2.0, 3.0, 2.0, 1.0]]), torch.zeros(1, 4), 2)
        >>> changed.int().tolist(), flipped.int().tolist()
        ([[1, 1, 1, 0]], [[0, 1, 0, 0]])
    """
    if k < 0:
        raise ValueError(f"k: {k} is not allowed; it must be at least 0")
    logits = at_least_fp32(logits.detach())
    observed = _checked("large_loss", "observed", logits, observed, check, binary=True)
    unobserved = observed == 0
    losses = F.softplus(logits).masked_fill(~unobserved, -torch.inf)
    everywhere = (losses if gather is None else gather(losses)).flatten()
    if not k or not len(everywhere):
        return torch.zeros_like(unobserved), torch.zeros_like(unobserved)
    bound = everywhere.topk(min(k, len(everywhere))).values[-1]
    return unobserved & (losses >= bound), unobserved & (losses > bound)


def binary_entropy(logits: Tensor) -> Tensor:
    """Entropy of each entry's Bernoulli distribution, in nats.

    ``-p log p - (1-p) log(1-p)`` with p = sigmoid(logits), accurate also where p is near 0 or 1. Zhou et al.
    (ECCV 2022) and VLPL maximise it on unknown entries; their code (github mvrl/VLPL, ed09b59) adds 1e-5
    inside the logarithms, which changes an entropy by at most 2e-5.

    Args:
        logits: (B, K) any float dtype; B may be 0.

    Returns:
        (B, K) float32, or float64 for float64 logits, in [0, log 2].

    Example:
        >>> binary_entropy(torch.tensor([[0.0, 3.0, -30.0]]))
        tensor([[6.9315e-01, 1.9086e-01, 2.9009e-12]])
    """
    logits = at_least_fp32(logits)
    present, absent = torch.sigmoid(logits), torch.sigmoid(-logits)
    return -(present * F.logsigmoid(logits) + absent * F.logsigmoid(-logits))


def _asymmetric(
    logits: Tensor, targets: Tensor, gamma_pos: float, gamma_neg: float, clip: float, eps: float
) -> Tensor:
    present = torch.sigmoid(logits)
    # sigmoid(-z) is 1 - sigmoid(z) without the cancellation for large z.
    absent = (torch.sigmoid(-logits) + clip).clamp(max=1)
    loss = targets * torch.log(present.clamp(min=eps)) * _focal(present, gamma_pos)
    loss = loss + (1 - targets) * torch.log(absent.clamp(min=eps)) * _focal(absent, gamma_neg)
    return -loss


def _focal(probability: Tensor, gamma: float) -> Tensor | float:
    return (1 - probability.detach()) ** gamma if gamma else 1.0


def _focal_margin(logits: Tensor, gamma: float) -> Tensor:
    """-(1-p)^gamma log p of positives with the given logits; of negatives, with their logits negated."""
    return -(torch.sigmoid(-logits) ** gamma) * F.logsigmoid(logits)


def _checked(
    function: str, name: str, logits: Tensor, values: Tensor, check: bool, binary: bool = False
) -> Tensor:
    """``values`` as targets of ``logits`` in their dtype."""
    if values.shape != logits.shape:
        raise ValueError(
            f"{function}: {name} have the shape {tuple(values.shape)}, the logits {tuple(logits.shape)}"
        )
    if check:
        allowed = ((values == 0) | (values == 1)) if binary else ((values >= 0) & (values <= 1))
        if not bool(allowed.all()):
            wrong = values[~allowed][0].item()
            raise ValueError(
                f"{function}: {name} must {'be 0 or 1' if binary else 'lie in [0, 1]'}, not {wrong:g}"
            )
    return values.to(logits)
