"""Prints an explanation as one page of text. Its numbers are rounded, those of --json are exact."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime

from rich.text import Text

from bus.utils.terminal import escape_control
from coordinator.explain.models import ClosingReason, ExplainedVoter, Explanation
from coordinator.reporting.formatting import counted, format_value
from coordinator.reporting.tables import Column, console, print_table

MOST_TERMS = 6
"""Voters whose terms a sum lists."""
LABEL_WIDTH = 16
SIDE_COLOURS = {"buy": "green", "sell": "red", "hold": "yellow"}
COLUMNS = (
    Column("voter"), Column("vote"), Column("p_up", right=True), Column("weight", right=True),
    Column("weight x logit p_up", 3, right=True), Column("after tick", 1, right=True), Column("message", 2, right=True),
    Column("epoch", 4, right=True), Column("indicators", 5),
)  # fmt: skip
CLOSED_BY: dict[ClosingReason, str] = {
    "votes": "the vote of {by}, the last that was expected",
    "timer": "the timer of the round",
    "config": "a Config that expects fewer voters",
    "order": "{by}: the round was complete, and closed once the rounds before it had",
    "no voters": "its tick, as the Config expects no voters",
    "unknown": "a message of {by} that does not close it",
}


def print_explanation(found: Explanation) -> None:
    """Print the page."""
    out = console()
    for line in (*_head(found), Text()):
        out.print(line, soft_wrap=True)
    print_table(out, COLUMNS, [_voter_row(voter) for voter in found.voters])
    out.print()
    for label, text in _body(found):
        out.print(Text(f"{label:<{LABEL_WIDTH}}", "bold") + Text(escape_control(text)), soft_wrap=True)
    out.print()
    out.print(_verdict(found), soft_wrap=True)


def _head(found: Explanation) -> Iterator[Text]:
    published, tick, config = found.published, found.tick, found.config
    yield Text.assemble(
        (escape_control(f"{found.symbol} round {found.round}: "), "bold"),
        (published.final_decision, f"bold {SIDE_COLOURS[published.final_decision]}"),
        f", size {_number(published.position_size)}, risk {_number(published.risk_score)}, "
        f"consensus {_number(published.consensus_level)}",
    )
    yield Text(
        escape_control(
            f"decision {found.decision_id}: message {found.sequence:,} by {found.decider}{_epoch(found.epoch)}, stored "
            f"{_clock(found.stored_at)}, {_ms(found.after_tick_ms)} after the tick"
        )
    )
    yield Text(
        escape_control(
            f"tick {tick.number} by {tick.source}: message {tick.sequence:,}, stored {_clock(tick.stored_at)}; price "
            f"{tick.price:,}, volume {tick.volume:,}, of {tick.timestamp:%Y-%m-%d %H:%M:%S} UTC"
        )
    )
    if config.sequence is None:
        yield Text("Config: none was stored yet, so there were no voters")
    else:
        changed = ", which came into force inside this round" if config.changed_in_round else ""
        yield Text(
            f"Config: message {config.sequence:,}{changed}; quorum {config.quorum:g}, buy at {config.buy_at:g}, "
            f"sell at {config.sell_at:g}, timeout {config.round_timeout_ms} ms"
        )


def _voter_row(voter: ExplainedVoter) -> list[str | Text]:
    answer = "" if voter.side is None else f"{voter.side} {_number(voter.strength)}"
    vote = answer if voter.status == "counted" else f"{voter.status}, {answer}" if answer else voter.status
    shown = ", ".join(f"{name} {_short(value)}" for name, value in voter.indicators.items())
    if voter.sources:
        shown = f"from {', '.join(voter.sources)}"
    return [
        voter.name,
        Text(escape_control(vote), "" if voter.status == "counted" else "yellow"),
        _number(voter.p_up),
        _number(voter.weight),
        f"{voter.log_odds:+.4f}",
        "" if voter.after_tick_ms is None else _ms(voter.after_tick_ms),
        "" if voter.sequence is None else f"{voter.sequence:,}",
        "" if voter.epoch is None else f"{voter.epoch:,}",
        shown,
    ]


def _body(found: Explanation) -> Iterator[tuple[str, str]]:
    yield from _pools(found)
    yield from _risk(found)
    yield from _size(found)
    yield from _flips(found)
    yield from _round(found)


def _pools(found: Explanation) -> Iterator[tuple[str, str]]:
    pools, quorum, config, voters = found.pools, found.quorum, found.config, found.voters
    q, m = _number(pools.log_pool), _number(pools.linear_pool)
    terms = " ".join(f"{voter.log_odds:+.4f}" for voter in voters)
    summed = f"{terms} = " if 0 < len(voters) <= MOST_TERMS else f"the sum of {counted(len(voters), 'term')}, "
    yield "log pool", f"q = sigmoid({summed}{pools.log_odds:+.4f}) = {q}"
    yield "consensus", f"max(q, 1 - q) = {_number(pools.consensus)}"
    terms = " + ".join(f"{_number(voter.weight)} x {_number(voter.p_up)}" for voter in voters)
    yield "linear pool", f"m = {terms} = {m}" if 0 < len(voters) <= MOST_TERMS else f"m = sum of weight x p_up = {m}"
    yield "disagreement", f"d = 2 sqrt(sum of weight x (p_up - m)^2) = {_number(pools.disagreement)}"
    present = sum(voter.status == "counted" for voter in voters)
    reached = "reached" if quorum.reached else "not reached, so hold"
    yield _row(
        "quorum",
        f"{present} of {counted(len(voters), 'voter')} with {_number(quorum.present)} of the weight; more than "
        f"{quorum.required:g} is needed: {reached}",
    )
    side = "buy" if pools.log_pool >= config.buy_at else "sell" if pools.log_pool <= config.sell_at else "hold"
    yield "thresholds", f"buy if q >= {config.buy_at:g}, sell if q <= {config.sell_at:g}; q = {q}: {side}"


def _risk(found: Explanation) -> Iterator[tuple[str, str]]:
    risk, config, returns = found.risk, found.config, max(len(found.risk.closes) - 1, 0)
    since = f"{counted(returns, 'return')} of {found.tick.source} since message {risk.first_sequence:,}"
    yield _row(
        "risk",
        f"1 - (1 - d) x volatility factor x drawdown factor = 1 - {_number(risk.agreement)} x "
        f"{_number(risk.volatility_factor)} x {_number(risk.drawdown_factor)} = {_number(risk.risk_score)}",
    )
    if risk.volatility is None:
        yield "  volatility", f"unknown after {since}: factor 1"
    else:
        yield _row(
            "  volatility",
            f"{_percent(risk.volatility)} a candle, from {since}; target {_percent(config.vol_target)}: factor min(1, "
            f"target / volatility) = {_number(risk.volatility_factor)}",
        )
    yield _row(
        "  drawdown",
        f"{_percent(risk.drawdown)} on paper, from the {counted(len(risk.positions), 'position')} before; maximum "
        f"{_percent(config.drawdown_max)}: factor max(0, 1 - drawdown / maximum) = {_number(risk.drawdown_factor)}",
    )


def _size(found: Explanation) -> Iterator[tuple[str, str]]:
    size, risk, config = found.size, found.risk, found.config
    m, bound = _number(found.pools.linear_pool), size.bound_by
    if size.edge is None:
        yield "size", "0: hold takes no position"
        return
    edge = f"2m - 1 = 2 x {m} - 1" if found.computed.final_decision == "buy" else f"1 - 2m = 1 - 2 x {m}"
    if bound == "no edge":
        yield "size", f"0: {edge} = {size.edge:+.4f}: the linear pool is on the other side than the log pool"
        return
    marks = {name: " <- this one" if bound == name else "" for name in ("edge", "cvar", "position_cap")}
    yield "size", f"{_number(size.position_size)}, the least of three"
    yield _row(
        "  edge",
        f"({edge} = {_number(size.edge)}) x (1 - risk {_number(risk.risk_score)}) = {_number(size.uncapped)}"
        f"{marks['edge']}",
    )
    if risk.cvar is None:
        yield "  CVaR cap", "none: too few returns to know the CVaR"
    elif size.cvar_cap is None:
        yield "  CVaR cap", f"none: CVaR {_percent(risk.cvar)} is no loss"
    else:
        yield _row(
            "  CVaR cap",
            f"maximum {_percent(config.cvar_max)} / CVaR {_percent(risk.cvar)} (mean loss in the worst 5 % of candles) "
            f"= {_number(size.cvar_cap)}{marks['cvar']}",
        )
    yield "  position cap", f"{_number(size.position_cap)}{marks['position_cap']}"


def _flips(found: Explanation) -> Iterator[tuple[str, str]]:
    action, label = found.computed.final_decision, "flips it alone"
    fixed = []
    for voter in found.voters:
        flip = voter.flip
        if flip.p_up is None or flip.move is None:
            fixed.append(voter.name)
            continue
        if flip.move == 0.0:
            text = f"{voter.name}, by voting at all: with its weight the quorum is reached, and {flip.action} follows"
        else:
            least = math.floor(flip.p_up * 1e4) / 1e4 if flip.move < 0 else math.ceil(flip.p_up * 1e4) / 1e4
            what = "p_up" if voter.status == "counted" else "by a vote in time instead of its absence; p_up"
            text = (
                f"{voter.name}: {what} {_number(voter.p_up)} -> {least:.4f} or {'less' if flip.move < 0 else 'more'} "
                f"({flip.move:+.4f}) gives {flip.action}"
            )
        yield label, text
        label = ""
    if fixed and found.voters:
        names = "no voter" if len(fixed) == len(found.voters) else f"not {', '.join(fixed)}"
        yield label, f"{names}, whatever its p_up"
    without = [
        f"{v.name}: {v.flip.without}" for v in found.voters if v.status == "counted" and v.flip.without != action
    ]
    late = [f"{voter.name}: {voter.flip.with_late_vote}" for voter in found.voters if voter.flip.with_late_vote]
    if late:
        yield "late votes", f"had they counted, each alone: {', '.join(late)}"
    yield "absence alone", f"would have changed it, of {', '.join(without)}" if without else "of no voter changes it"


def _round(found: Explanation) -> Iterator[tuple[str, str]]:
    closing = found.closing
    text = CLOSED_BY[closing.reason].format(by=closing.by)
    yield "closed by", f"{text}: message {closing.sequence:,}, {_ms(closing.after_tick_ms)} after the tick"
    for vote in found.ignored:
        yield _row(
            "ignored",
            f"{vote.reason} vote of {vote.voter}, p_up {_number(vote.p_up)}: message {vote.sequence:,}, "
            f"{_ms(vote.after_tick_ms)} after the tick",
        )
    if not found.events:
        yield "events", "none between tick and decision: no claim, no recovery"
    for at, event in enumerate(found.events):
        reason = "" if event.reason is None else f": {format_value(event.reason)}"
        when = f"{abs(event.after_tick_ms):,.1f} ms {'before' if event.after_tick_ms < 0 else 'after'} the tick"
        text = f"{event.agent} {event.event}{_epoch(event.epoch)}, message {event.sequence:,}, {when}{reason}"
        yield "" if at else "events", text
    yield "trace", found.trace_id or "none: the decision was not traced"
    for note in found.notes:
        yield "note", note


def _verdict(found: Explanation) -> Text:
    how = f"computed again from {counted(found.read, 'message')} of {found.source} in {found.duration_ms:,.0f} ms"
    if found.same:
        return Text.assemble(("the same to the last digit", "bold green"), escape_control(f": {how}"))
    lines = [f"\n  {one.field}: published {one.recorded}, computed {one.replayed}" for one in found.differences]
    return Text.assemble(("DIFFERENT", "bold red"), escape_control(f": {how}"), *map(_plain, lines))


def _row(label: str, text: str) -> tuple[str, str]:
    return label, text


def _plain(line: str) -> str:
    return escape_control(line, keep="\n")


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else "1" if value == 1 else f"{value:.4f}"


def _percent(value: float) -> str:
    return f"{value * 100:.4g} %"


def _ms(value: float) -> str:
    return f"{value:,.1f} ms"


def _clock(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S.%f}"[:-3]


def _epoch(epoch: int | None) -> str:
    return "" if epoch is None else f" (epoch {epoch:,})"


def _short(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else format_value(value)
