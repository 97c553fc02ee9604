"""swarm.toml: every mistake is reported by file and key; the defaults are the table of the design."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import pytest

from agents.spec import load_class
from bus.errors import EXIT_USAGE, ConfigError, UsageError
from bus.messages import VotingConfig, decode, encode
from bus.messages.subjects import Subjects
from coordinator.config.loader import (
    BUILT_IN,
    MAX_FILE_BYTES,
    SwarmConfig,
    load_swarm,
    to_config_message,
    warnings_about,
)

OWN_AGENT = """
    from dataclasses import dataclass
    from agents.agent import Agent
    from bus.messages import MarketData, Signal

    class Breakout(Agent):
        kind = "breakout"
        listens = ("market",)

        @dataclass(frozen=True)
        class Options:
            window: int = 20

        def on_market(self, tick: MarketData) -> Signal | None:
            return self.signal(tick, "buy", 0.5)
"""


@pytest.fixture(autouse=True)
def _own_modules(tmp_path):
    """Each test's modules beside its swarm.toml are forgotten with it. No other one: a thread may be importing it."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
        if any(place is not None and Path(place).is_relative_to(tmp_path) for place in places):
            del sys.modules[name]


def written(directory: Path, text: str) -> SwarmConfig:
    (directory / "swarm.toml").write_text(textwrap.dedent(text))
    return load_swarm(directory=directory)


def own_agent(directory: Path, source: str = OWN_AGENT, name: str = "my_agents.py") -> None:
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(textwrap.dedent(source))


def test_without_a_file_it_is_the_default_swarm(tmp_path):
    config = load_swarm(directory=tmp_path)
    assert (config.file, config.swarm, config.max_agents) == (BUILT_IN, "swarm", 5)
    assert [(a.spec.name, a.spec.kind, a.spec.sandbox, a.spec.memory_key) for a in config.agents] == [
        ("research-1", "market-data", "base", "market_data"),
        ("research-2", "sentiment", "nodejs", "sentiment"),
        ("strategy-momentum", "momentum", "nodejs", "signal"),
        ("strategy-mean-reversion", "mean-reversion", "python", "signal"),
        ("coordinator", "coordinator", "python", "decision"),
    ]
    assert [(s.name, s.provider, s.packages) for s in config.sandboxes] == [
        ("base", "local", ()),
        ("nodejs", "local", ("express", "axios", "lodash")),
        ("python", "local", ("numpy", "pandas", "requests")),
    ]
    keys = {a.spec.name: Subjects("swarm").memory_key(a.spec.name, a.spec.memory_key) for a in config.agents}
    assert keys["strategy-mean-reversion"] == "swarm/strategy-mean-reversion/signal"


def test_who_decides_is_named_to_everybody(tmp_path):
    config = load_swarm(directory=tmp_path).resolve()
    assert config.deciders == ("coordinator",)
    assert to_config_message(config, config.voters).deciders == ("coordinator",)
    assert warnings_about(config) == ()


def test_a_swarm_that_decides_nothing_is_doubted(tmp_path):
    config = written(tmp_path, '[agents.feed]\nkind = "market-data"\n').resolve()
    (warning,) = warnings_about(config)
    assert warning.startswith(str(tmp_path / "swarm.toml"))
    assert 'there will be no decisions; for decisions add an agent with kind = "coordinator"' in warning
    text = '[agents.feed]\nkind = "market-data"\n[agents.mine]\nexternal = true\n'
    (warning,) = warnings_about(written(tmp_path, text).resolve())
    assert "no decisions, unless an external agent (mine) publishes them" in warning


def test_two_that_decide_are_doubted(tmp_path):
    config = written(tmp_path, '[agents.b]\nkind = "coordinator"\n[agents.a]\nkind = "coordinator"\n').resolve()
    (warning,) = warnings_about(config)
    assert "2 agents decide (a, b)" in warning
    assert to_config_message(config, {}).deciders == ("a", "b")


def test_the_default_swarm_resolves_to_three_voters(tmp_path):
    config = load_swarm(directory=tmp_path).resolve()
    assert config.voters == {"research-2": 1.0, "strategy-momentum": 1.0, "strategy-mean-reversion": 1.0}
    assert {name: traits.kind for name, traits in config.traits.items()} == {
        a.spec.name: a.spec.kind for a in config.agents
    }


def test_the_default_settings_are_the_defaults_of_the_config_message(tmp_path):
    message = to_config_message(load_swarm(directory=tmp_path).resolve(), {"a": 2.0})
    plain = VotingConfig(voters={"a": 2.0}, timestamp=message.timestamp, source="watchdog", deciders=("coordinator",))
    assert message == plain
    subjects = Subjects("swarm")
    subject = subjects.config("watchdog")
    assert decode(subjects.parse(subject), subject, encode(message)) == message


def test_a_whole_file(tmp_path):
    own_agent(tmp_path)
    config = written(
        tmp_path,
        """
            swarm = "alpha"
            max_agents = 6
            [sandboxes.one]
            [sandboxes.two]
            provider = "local"
            packages = ["numpy"]
            [agents.feed]
            kind = "market-data"
            sandbox = "two"
            [agents.breakout]
            class = "my_agents:Breakout"
            weight = 2
            memory_key = "high"
            options = { window = 5 }
            [agents.script]
            command = ["node", "agent.mjs"]
            listens = ["market"]
            publishes = ["signal"]
            [agents.script.options]
            timeout_s = 2
            [agents.stranger]
            external = true
            weight = 0.5
            [agents.quiet]
            kind = "momentum"
            votes = false
            [coordinator]
            quorum = 0.6
            round_timeout_ms = 250
            [stream]
            max_age_s = 3600
            max_bytes = 2_000_000
            durability = "power"
            replicas = 3
            [watchdog]
            dead_ms = 900
            """,
    ).resolve()
    assert (config.swarm, config.max_agents) == ("alpha", 6)
    assert config.voters == {"breakout": 2.0, "script": 1.0, "stranger": 0.5}
    breakout = config.agent("breakout").spec
    assert (breakout.kind, breakout.memory_key, breakout.options) == ("breakout", "high", {"window": 5})
    assert breakout.search_path == str(tmp_path.resolve())
    script = config.agent("script").spec
    assert (script.kind, script.command, script.listens) == ("command", ("node", "agent.mjs"), ("market",))
    assert script.options == {"timeout_s": 2}
    assert config.agent("stranger").external
    assert config.agent("stranger").spec.sandbox == ""
    assert {a.spec.swarm for a in config.agents} == {"alpha"}
    message = to_config_message(config, config.voters)
    assert (message.quorum, message.round_timeout_ms, message.buy_at) == (0.6, 250, 0.55)
    assert (config.stream.max_age_s, config.stream.max_bytes, config.stream.durability) == (3600, 2_000_000, "power")
    assert config.stream.replicas == 3
    assert (config.watchdog.suspect_ms, config.watchdog.dead_ms) == (300, 900)


def test_agents_without_a_sandbox_go_where_the_fewest_are(tmp_path):
    config = written(
        tmp_path,
        """
        [sandboxes.a]
        [sandboxes.b]
        [sandboxes.c]
        [agents.v]
        kind = "momentum"
        [agents.w]
        kind = "momentum"
        [agents.x]
        kind = "momentum"
        sandbox = "a"
        [agents.y]
        kind = "momentum"
        [agents.z]
        external = true
        """,
    )
    assert [a.spec.sandbox for a in config.agents] == ["b", "c", "a", "a", ""]


def test_the_default_agents_spread_over_sandboxes_of_one_s_own(tmp_path):
    config = written(tmp_path, "[sandboxes.here]\n[sandboxes.python]\n")
    assert [a.spec.sandbox for a in config.agents] == ["here", "here", "here", "python", "python"]


def test_a_file_named_explicitly_wins_and_may_stand_anywhere(tmp_path):
    written(tmp_path, 'swarm = "here"')
    (tmp_path / "sub").mkdir()
    own_agent(tmp_path / "sub")
    (tmp_path / "sub" / "other.toml").write_text('swarm = "there"\n[agents.x]\nclass = "my_agents:Breakout"\n')
    config = load_swarm(Path("sub/other.toml"), directory=tmp_path)
    assert config.swarm == "there"
    assert config.agents[0].spec.search_path == str((tmp_path / "sub").resolve())
    config.resolve()


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ("swram = 'a'", "swram", r"unknown key \(did you mean 'swarm'\?\)"),
        ("swarm = 3", "swarm", "expected a text in quotes, not 3"),
        ("swarm = 'a.b'", "swarm", "expected 1 to 64 letters"),
        ("swarm = 'a\\u001b[2J'".replace("'", '"'), "swarm", "expected 1 to 64 letters"),
        ("max_agents = 5.0", "max_agents", "expected a whole number, not 5.0"),
        ("[sandboxes.unsupervised]", "sandboxes.unsupervised", "reserved"),
        ("[sandboxes.a]\npackages = ['']", "sandboxes.a.packages[0]", "the name of a package, not ''"),
        ("[sandboxes.a]\npackages = ['b', '-e .']", "sandboxes.a.packages[1]", "the name of a package, not '-e .'"),
        ("[agents.x]\nkind='momentum'\nmemory_key='" + "a" * 129 + "'", "agents.x.memory_key", "128 at most"),
        (
            "[agents.x]\ncommand=['a']\nlistens=['market','market']\npublishes=['signal']",
            "agents.x.listens",
            "'market' is listed 2 times",
        ),
        ("[coordinator]\nround_timeout_ms=99999999999999", "coordinator.round_timeout_ms", "<= "),
        ("[stream]\nmax_age_s=1e300", "stream.max_age_s", "<= "),
        ("[stream]\nmax_bytes=9223372036854775808", "stream.max_bytes", "<= "),
        ("[watchdog]\nstarved_ms=99999999999999", "watchdog.starved_ms", "<= "),
        ("[watchdog]\nquarantine_window_s=1e300", "watchdog.quarantine_window_s", "<= "),
        ("swarm = 'in'", "swarm", "reserved"),
        ("max_agents = '5'", "max_agents", "expected a whole number, not '5'"),
        ("max_agents = true", "max_agents", "expected a whole number, not true"),
        ("max_agents = -1", "max_agents", r">= 1 \(given: -1\)"),
        ("max_agents = 4", "agents", "5 agents are configured, at most 4 are allowed.*max_agents = 5"),
        ("agents = 3", "agents", "expected a table"),
        ("[agents]", "agents", "expected at least one"),
        ("[sandboxes]", "sandboxes", "expected at least one"),
        ("[agents]\nx = 1", "agents.x", r"expected a table \[agents.x\], not 1"),
        ("[[agents.x]]\nkind = 'momentum'", "agents.x", "expected a table"),
        ("[agents.x]", "agents.x", "nothing to run is configured: add kind = .* or external = true"),
        ("[agents.x]\nkind='momentum'\nclass='a:B'", "agents.x", "only one of kind and class is allowed"),
        ("[agents.x]\nkind='momentum'\nexternal=true", "agents.x", "only one of kind and external is allowed"),
        ("[agents.x]\nknd='momentum'", "agents.x.knd", "unknown key.*did you mean 'kind'"),
        ("[agents.x]\nkind='momentun'", "agents.x.kind", "did you mean 'momentum'.*market-data.*module:Class"),
        ("[agents.x]\nkind=3", "agents.x.kind", "expected a text in quotes, not 3"),
        ("[agents.x]\nclass='Breakout'", "agents.x.class", "'Breakout': expected 'module:Class' or 'path/to/file.py:"),
        ("[agents.x]\nclass='a b:C'", "agents.x.class", "expected 'module:Class'"),
        ("[agents.x]\ncommand='node a.mjs'", "agents.x.command", "expected a list, not 'node a.mjs'"),
        ("[agents.x]\ncommand=[]", "agents.x.command", "length >= 1"),
        ("[agents.x]\ncommand=['a', 1]", "agents.x.command[1]", "expected a text"),
        ("[agents.x]\ncommand=['a']", "agents.x.listens", "is required with command"),
        ("[agents.x]\ncommand=['a']\nlistens=['market']", "agents.x.publishes", "is required with command"),
        (
            "[agents.x]\ncommand=['a']\nlistens=['markt']\npublishes=['signal']",
            "agents.x.listens",
            "unknown kind 'markt'.*did you mean 'market'",
        ),
        (
            "[agents.x]\ncommand=['a']\nlistens=['market']\npublishes=['timer']",
            "agents.x.publishes",
            "unknown kind 'timer'",
        ),
        ("[agents.x]\nkind='momentum'\nlistens=['market']", "agents.x.listens", "only with command"),
        ("[agents.x]\nexternal=true\nsandbox='base'", "agents.x.sandbox", "no effect on an external agent"),
        (
            "[agents.x]\nkind='momentum'\nsandbox='pyton'",
            "agents.x.sandbox",
            "no sandbox 'pyton'.*did you mean 'python'",
        ),
        ("[agents.x]\nkind='momentum'\nweight=-1", "agents.x.weight", r">= 0.0 \(given: -1\)"),
        ("[agents.x]\nkind='momentum'\nweight=nan", "agents.x.weight", "expected a finite number"),
        ("[agents.x]\nkind='momentum'\nvotes=1", "agents.x.votes", "expected true or false, not 1"),
        ("[agents.x]\nkind='momentum'\nmemory_key='a b'", "agents.x.memory_key", "'a b': expected letters"),
        ("[agents.x]\nkind='momentum'\noptions={a=[1.0, inf]}", "agents.x.options.a[1]", "finite"),
        ("[agents.'a b']\nkind='momentum'", "agents.a b", "expected 1 to 64 letters"),
        ("[agents.watchdog]\nkind='momentum'", "agents.watchdog", "this name is reserved"),
        ("[agents.base]\nkind='momentum'", "agents.base", "collides with sandbox 'base'"),
        ("[agents.x]\nkind='momentum'\n[agents.X]\nkind='momentum'", "agents.X", "collides with agent 'x'"),
        ("[sandboxes.a]\n[sandboxes.A]", "sandboxes.A", "collides with sandbox 'a'"),
        ("[sandboxes.a]\nprice_per_hour = 0.1", "sandboxes.a.price_source", "expected the source of price_per_hour"),
        ("[sandboxes.a]\nprice_per_hour = -1", "sandboxes.a.price_per_hour", ">= 0"),
        ("[sandboxes.a]\nprovider='k8s'", "sandboxes.a.provider", "'k8s' is not available; available: local, e2b"),
        ("[sandboxes.a]\ncpu=2", "sandboxes.a.cpu", 'is valid only with provider = "e2b"'),
        ("[sandboxes.a]\nprovider='e2b'\npackages=['x']", "sandboxes.a.packages", "expected a table"),
        ("[sandboxes.a]\nprovider='e2b'\npackages.gem=['x']", "sandboxes.a.packages.gem", "expected pip and npm"),
        ("[sandboxes.a]\nprovider='e2b'\npackages.pip=['-x']", "sandboxes.a.packages.pip[0]", "the name of a package"),
        ("[sandboxes.a]\nprovider='e2b'\nenv.E2B_API_KEY='x'", "sandboxes.a.env.E2B_API_KEY", "neither with E2B_"),
        ("[sandboxes.a]\nprovider='e2b'\nmetadata.pool='x'", "sandboxes.a.metadata.pool", "this name is reserved"),
        ("[sandboxes.a]\nprovider='e2b'\nmax_age_s=600", "sandboxes.a.max_age_s", "expected more than timeout_s"),
        ("[sandboxes.a]\nprovider='e2b'\ntimeout_s=1", "sandboxes.a.timeout_s", ">= 3"),
        ("[sandboxes.a]\nprovider='e2b'\ntemplate=''", "sandboxes.a.template", "expected a name.*'base', not ''"),
        ("[sandboxes.a]\nprovider='e2b'\npython=' '", "sandboxes.a.python", "expected a name.*'python3', not ' '"),
        ("[sandboxes.a]\nprovider='e2b'\nmetadata={''='x'}", "sandboxes.a.metadata", "names that are not empty"),
        ("[sandboxes.a]\nprovider='e2b'\nreplace_at=1.0", "sandboxes.a.replace_at", r"20 s of .* 1 leaves 0: a small"),
        (
            "[sandboxes.a]\nprovider='e2b'\ntimeout_s=3\nmax_age_s=6",
            "sandboxes.a.replace_at",
            r"max_age_s \(6\).* 0.8 leaves 1.2: .*longer age",
        ),
        ("[sandboxes.a]\nprovider='e2b'\nallow=['not an address']", "sandboxes.a.allow[0]", "not 'not an address'"),
        ("[sandboxes.a]\nprovider='e2b'\nallow=['1.1.1.1', '10.0.0.0/33']", "sandboxes.a.allow[1]", "a CIDR or a dom"),
        ("[sandboxes.a]\nprovider='e2b'\nallow=['10.0.0.300']", "sandboxes.a.allow[0]", "not '10.0.0.300'"),
        ("[sandboxes.a]\nprovider='e2b'\nallow=['10.0.0.0/255.0.0.0']", "sandboxes.a.allow[0]", "not '10.0.0.0/255"),
        ("[sandboxes.a]\nprovider='e2b'\nallow=['localhost']", "sandboxes.a.allow[0]", "not 'localhost'"),
        ("[sandboxes.a]\nprovider='e2b'\nallow=['']", "sandboxes.a.allow[0]", "not ''"),
        ("[sandboxes.a]\nprovider='e2b'\nallow=['*']\ndeny=['0.0.0.0/0']", "sandboxes.a.allow[0]", "not '\\*'"),
        ("[sandboxes.a]\nprovider='e2b'\nallow=['a.org']", "sandboxes.a.allow[0]", r"add deny = \['0.0.0.0/0'\]"),
        ("[sandboxes.a]\nprovider='e2b'\ndeny=['example.com']", "sandboxes.a.deny[0]", "E2B denies no domains"),
        (f"[sandboxes.{'a' * 41}]\nprovider='e2b'", f"sandboxes.{'a' * 41}", "40 characters at most"),
        ("[sandboxes.a]\npackages='numpy'", "sandboxes.a.packages", "expected a list"),
        ("[sandboxes.a]\npackages=[1]", "sandboxes.a.packages[0]", "expected a text"),
        ("[sandboxes.a]\npackage=[]", "sandboxes.a.package", "did you mean 'packages'"),
        ("[coordinator]\nquorum=1", "coordinator.quorum", "< 1.0"),
        ("[coordinator]\nposition_cap=-0.5", "coordinator.position_cap", "> 0.0"),
        ("[coordinator]\nround_timeout_ms=0", "coordinator.round_timeout_ms", ">= 1"),
        ("[coordinator]\nbuy_at=0.4", "coordinator.sell_at", r"at most buy_at \(0.4\), not 0.45"),
        ("[coordinator]\nvoters=[]", "coordinator.voters", "unknown key"),
        ("[stream]\nmax_age_s=60", "stream.max_age_s", ">= 120"),
        ("[stream]\nmax_bytes=1.5", "stream.max_bytes", "expected a whole number"),
        ("[stream]\ndurability='disk'", "stream.durability", r"expected one of 'process', 'power' \(given: 'disk'\)"),
        ("[stream]\nreplicas=0", "stream.replicas", ">= 1"),
        ("[stream]\nreplicas=6", "stream.replicas", "<= 5"),
        ("[watchdog]\nheartbeat_ms=-5", "watchdog.heartbeat_ms", ">= 1"),
        ("[watchdog]\nsuspect_ms=50", "watchdog.suspect_ms", r"more than heartbeat_ms \(100\), not 50"),
        ("[watchdog]\nquarantine_window_s=0", "watchdog.quarantine_window_s", "> 0"),
    ],
)
def test_a_mistake_is_reported_by_its_key(tmp_path, text, key, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        written(tmp_path, text)
    assert caught.value.key == key
    assert caught.value.file == str(tmp_path / "swarm.toml")
    assert str(caught.value).startswith(f"{caught.value.file}: {key}: ")
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("swarm = 'a'\nx = = 1", "line 2, column 5"),
        ("[agents.x]\nkind = 'momentum'\n[agents.x]\n", "line 3, column 10"),
        ("[agents.x]\nkind = 'momentum'\nkind = 'sentiment'\n", "line 3"),
    ],
)
def test_a_syntax_error_or_a_key_given_twice_is_reported_by_line_and_column(tmp_path, text, place):
    with pytest.raises(ConfigError, match=place):
        written(tmp_path, text)


def test_a_file_that_is_missing_not_a_file_or_not_text(tmp_path):
    with pytest.raises(ConfigError, match="file not found; --config") as caught:
        load_swarm(Path("nowhere.toml"), directory=tmp_path)
    assert caught.value.file == str(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="expected a file; this is a directory"):
        load_swarm(tmp_path, directory=tmp_path)
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(ConfigError, match="expected a file; this is"):
        load_swarm(tmp_path / "pipe.toml", directory=tmp_path)
    (tmp_path / "large.toml").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="expected at most"):
        load_swarm(tmp_path / "large.toml", directory=tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"swarm = 'a'\n# \xe4\n")
    with pytest.raises(ConfigError, match="line 2: expected UTF-8"):
        load_swarm(Path("latin.toml"), directory=tmp_path)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("{ windw = 3 }", r"options\.windw: unknown key \(did you mean 'window'"),
        ("{ window = 'x' }", r"options\.window: expected a whole number, not 'x'"),
        ("{ window = 2026-01-02 }", r"options\.window: expected a whole number, not '2026-01-02'"),
    ],
)
def test_an_option_that_the_class_does_not_have(tmp_path, options, problem):
    own_agent(tmp_path)
    config = written(tmp_path, f"[agents.x]\nclass = 'my_agents:Breakout'\noptions = {options}\n")
    with pytest.raises(ConfigError, match=problem) as caught:
        config.resolve()
    assert caught.value.key.startswith("agents.x.options.wind")


def test_options_of_a_command_and_of_a_class_without_any(tmp_path):
    text = 'command = ["cat"]\nlistens = ["market"]\npublishes = ["signal"]\noptions = { timeout_s = 0 }'
    with pytest.raises(ConfigError, match=r"agents\.x\.options\.timeout_s: expected a number > 0"):
        written(tmp_path, f"[agents.x]\n{text}\n").resolve()
    with pytest.raises(ConfigError, match=r"agents\.x\.options\.speed: unknown key; there are none here"):
        written(tmp_path, '[agents.x]\nkind = "coordinator"\noptions = { speed = 1 }\n').resolve()


def test_options_are_what_json_can_carry(tmp_path):
    command = '[agents.x]\ncommand = ["cat"]\nlistens = ["market"]\npublishes = ["signal"]\noptions = '
    [agent] = written(tmp_path, command + "{ since = 2026-01-02, at = [07:30:00] }").agents
    assert agent.spec.options == {"since": "2026-01-02", "at": ["07:30:00"]}
    with pytest.raises(ConfigError, match=r"options\.a\[0\]: expected a whole number of at most 64 bits"):
        written(tmp_path, command + "{ a = [9223372036854775808] }")


def test_a_byte_order_mark_is_passed_over_and_a_bottomless_file_refused(tmp_path):
    (tmp_path / "swarm.toml").write_bytes(b"\xef\xbb\xbfswarm = 'a'\r\n")
    assert load_swarm(directory=tmp_path).swarm == "a"
    with pytest.raises(ConfigError, match="too deeply"):
        written(tmp_path, f"x = {'[' * 5000}{']' * 5000}")


def test_a_vote_that_nobody_would_hear(tmp_path):
    with pytest.raises(ConfigError, match=r"agents\.feed\.votes: it publishes no sentiment and no signal"):
        written(tmp_path, '[agents.feed]\nkind = "market-data"\nvotes = true\n').resolve()
    (warning,) = warnings_about(written(tmp_path, '[agents.c]\nkind = "coordinator"\n').resolve())
    assert "no agent votes, so every decision will be hold" in warning


@pytest.mark.parametrize(
    ("class_path", "source", "problem"),
    [
        ("my_agent:Breakout", OWN_AGENT, "no module 'my_agent' .*did you mean my_agents"),
        ("elsewhere:Breakout", OWN_AGENT, r"no module 'elsewhere' .*expected a file elsewhere\.py"),
        ("sub/none.py:Breakout", OWN_AGENT, r"there is no file .*none\.py"),
        ("my_agents:Brekout", OWN_AGENT, "has no class 'Brekout'; did you mean Breakout"),
        ("my_agents:Zebra", OWN_AGENT, "has no class 'Zebra'; its agents are: Breakout"),
        ("my_agents:Zebra", "x = 1", "defines no agent at all"),
        ("my_agents:dataclass", OWN_AGENT, r"is no agent: expected `class dataclass\(Agent\)`"),
        ("my_agents:Breakout", "import not_there", r"ModuleNotFoundError: .*'not_there' \(.*my_agents\.py, line 1\)"),
        ("my_agents:Breakout", "x = 1\n1 / 0", r"ZeroDivisionError: division by zero \(.*my_agents\.py, line 2\)"),
        ("my_agents.py:Breakout", "x = 1\n1 / 0", r"ZeroDivisionError: .*my_agents\.py, line 2\)"),
        ("my_agents:Breakout", "import json\n\njson.loads('')", r"JSONDecodeError: .*my_agents\.py, line 3\)"),
        ("my_agents:Breakout", "x = (\n", r"SyntaxError: .*\(.*my_agents\.py, line 1\)"),
        ("my_agents:Breakout", "raise SystemExit(3)", r"SystemExit: 3 \(.*my_agents\.py, line 1\)"),
        (
            "my_agents:Breakout",
            "from agents.agent import Agent\nclass Breakout(Agent):\n    kind = 'b'\n",
            "my_agents:Breakout: expected `listens`",
        ),
    ],
)
def test_a_class_that_cannot_be_had(tmp_path, class_path, source, problem):
    own_agent(tmp_path, source)
    config = written(tmp_path, f"[agents.good]\nkind = 'momentum'\n[agents.x]\nclass = '{class_path}'\n")
    with pytest.raises(ConfigError, match=problem) as caught:
        config.resolve()
    assert caught.value.key == "agents.x.class"
    assert "agent 'x'" in caught.value.problem
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    "class_path", ["own/breakout.py:Breakout", "own.breakout:Breakout", "./own/breakout.py:Breakout"]
)
def test_a_class_beside_swarm_toml_is_found(tmp_path, class_path):
    own_agent(tmp_path, name="own/breakout.py")
    spec = written(tmp_path, f"[agents.x]\nclass = '{class_path}'\n").agents[0].spec
    cls = load_class(spec)
    assert cls.kind == "breakout"
    assert load_class(spec) is cls
    assert cls("x", {"window": 3}).options.window == 3


def test_a_module_whose_name_is_taken_is_refused(tmp_path):
    own_agent(tmp_path, name="json.py")
    with pytest.raises(UsageError, match=r"the name 'json' is taken by another module .*; rename .*json\.py:Class"):
        load_class(written(tmp_path, "[agents.x]\nclass = 'json:Breakout'\n").agents[0].spec)


def test_no_vote_with_any_weight(tmp_path):
    config = written(tmp_path, "[agents.x]\nkind = 'momentum'\nweight = 0\n")
    with pytest.raises(ConfigError, match="all voters have weight 0"):
        config.resolve()


def test_an_agent_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"no agent 'research-3' .*did you mean 'research-2'"):
        load_swarm(directory=tmp_path).agent("research-3")


def test_a_directory_whose_name_is_no_text_is_named(tmp_path):
    directory = tmp_path / os.fsdecode(b"n\xff")
    directory.mkdir()
    (directory / "swarm.toml").write_text('[agents.one]\nkind = "momentum"\n')
    with pytest.raises(ConfigError, match="the name of its directory is not UTF-8"):
        load_swarm(directory=directory)
