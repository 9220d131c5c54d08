"""Figures of the runs behind a plan: their curves against compute, the best tokens per parameter, rates and batches.

C compute (FLOP)    M non-embedding FLOP per token    D tokens
"""

from specs.formatting import flop
from specs.humanize import count
from specs.report import figure_parts
from specs.report.context import Case
from specs.report.figure_parts import ACTUAL, BAND_95, FORECAST, INK, Figure
from specs.report.run_figures import RateMap, RatePoint, TrainingCurve, envelope, rate_map

_M_PER_PARAM = 6.0
"""FLOP per token of a parameter (Kaplan et al. 2020, Table 1): M / 6 are the parameters that M stands for."""


def curves(case: Case) -> Figure | None:
    """The held-out curves of pilots and target against compute, and the minima of the isoFLOP profiles."""
    found = [
        TrainingCurve(
            name=planned.title,
            flop=tuple(
                float(planned.run.model.flop_per_token) * planned.run.batch_tokens * s for s in run.curve_step
            ),
            loss=run.curve_loss,
        )
        for planned, run in case.runs
        if planned.role != "rate" and run is not None and len(run.curve_step) > 1 and run.curve_step[0] > 0
    ]
    profiles = () if case.plan.fit is None else case.plan.fit.profiles
    minima = [(profile.compute_flop, profile.loss) for profile in profiles if profile.bracketed]
    return envelope(found, minima, "minima of the profiles", case.losses, "compute C = M·D, FLOP")


def tokens_per_param(case: Case) -> Figure | None:
    """Best tokens per parameter against compute: minima, the plan's allocation, the forecast's own best split.

    None for a table that counts parameters: its N is not M / 6.
    """
    fit, target = case.plan.fit, case.target
    if fit is None or target is None or fit.optimum is None or fit.size_kind != "flop_per_token":
        return None
    held = [profile for profile in fit.profiles if profile.bracketed]
    end, best = fit.optimum.compute_flop, fit.optimum.flop_per_token
    low, middle, high = (_M_PER_PARAM * end / m**2 for m in (best.high, best.value, best.low))
    flops = sorted({*(profile.compute_flop for profile in held), end})
    planned = [
        _M_PER_PARAM
        * fit.allocation.tokens.at(compute_flop=c)
        / fit.allocation.flop_per_token.at(compute_flop=c)
        for c in flops
    ]
    y = [_M_PER_PARAM * profile.tokens / profile.size for profile in held]
    diamond = {"symbol": "diamond", "size": 11, "line": {"color": "#fff", "width": 1.5}}
    drawn = [
        figure_parts.line(flops, planned, FORECAST, "the plan's allocation", dash="dash"),
        figure_parts.bar(end, low, high, 7, "best split, 95 %", BAND_95),
        figure_parts.dots(
            [end], [middle], FORECAST, None, [f"{flop(end)}: {count(middle)} ({count(low)} to {count(high)})"]
        ),
        figure_parts.dots(
            [profile.compute_flop for profile in held],
            y,
            INK,
            "minima of the profiles",
            [f"{flop(profile.compute_flop)}: {count(ratio)}" for profile, ratio in zip(held, y, strict=True)],
            **diamond,
        ),
    ]
    own = _M_PER_PARAM * target.run.tokens / float(target.run.model.flop_per_token)
    drawn.append(
        figure_parts.dots([target.run.compute_flop], [own], ACTUAL, "target", [f"target: {count(own)}"])
    )
    x = figure_parts.amount_axis("compute C = M·D, FLOP", [*flops, target.run.compute_flop], powers=True)
    return figure_parts.figure(
        drawn, x, figure_parts.amount_axis("D* / N*, with N = M / 6", [low, high, own, *y, *planned])
    )


def rates_and_batches(case: Case) -> RateMap | None:
    """The grid of learning rates and batches among the audited runs; None where there is none."""
    return rate_map(
        [
            RatePoint(
                size=float(planned.run.model.flop_per_token),
                tokens=float(planned.run.tokens),
                lr=planned.run.optim.peak_lr,
                batch_tokens=float(planned.run.batch_tokens),
                loss=run.loss,
            )
            for planned, run in case.runs
            if run is not None and run.loss is not None
        ]
    )
