"""The dashboard of runs: `python cluster/grafana/dashboard.py > cluster/grafana/iris-ray.json`."""

from itertools import count

from grafana_foundation_sdk.builders.common import VizLegendOptions, VizTooltipOptions
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable, Row
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
RUN = '{run=~"$run"}'
ENGINE = '{model_name=~"($run)/.*"}'
RATE = "[$__rate_interval]"
HEIGHT, WIDTH = 7, 6  # four panels of Grafana's 24 columns beside each other

EACH_RUN, EACH_SIDE, EACH_STATE = "{{run}}", "{{run}} {{side}}", "{{run}} {{state}}"
EACH_GENERATOR, EACH_ENGINE = "{{run}}/{{generator}}", "{{model_name}}"

Query = tuple[str, str]
"""PromQL and the name of its curves."""


def gauge(name: str, legend: str = EACH_RUN) -> Query:
    return f"ray_iris_{name}{RUN}", legend


def rate(name: str, legend: str = EACH_GENERATOR) -> Query:
    return f"rate(ray_iris_{name}_total{RUN}{RATE})", legend


def per_update(name: str, legend: str) -> Query:
    return (
        f"ray_iris_weight_{name}_total{RUN} / ray_iris_weight_updates_total{RUN}",
        f"{EACH_GENERATOR} {legend}",
    )


def quantile(name: str, share: float) -> Query:
    buckets = f"sum by (le, model_name) (rate(ray_vllm_{name}_bucket{ENGINE}{RATE}))"
    return f"histogram_quantile({share}, {buckets})", f"{EACH_ENGINE} {share:.0%}"


PROGRESS = (
    f"(ray_iris_iteration{RUN} - 1 + ray_iris_step{RUN} / ray_iris_steps{RUN}) / ray_iris_iterations{RUN}",
    EACH_RUN,
)

# Title, Grafana's name of the unit, queries.
ROWS: dict[str, list[tuple[str, str, list[Query]]]] = {
    "The game": [
        ("Progress", "percentunit", [PROGRESS]),
        ("Exact match", "percentunit", [gauge("exact_match_ratio")]),
        ("Order α", "none", [gauge("alpha")]),
        ("Gap in nats", "none", [gauge("gap_nats")]),
    ],
    "The learner": [
        ("Loss", "none", [gauge("loss")]),
        ("Rewards in nats", "none", [gauge("reward_nats", EACH_SIDE)]),
        ("Responses that carry the gradient", "none", [gauge("effective_samples", EACH_SIDE)]),
        ("Gradient norm", "none", [gauge("gradient_norm")]),
        ("Pairs per second", "none", [rate("trained_pairs", EACH_RUN)]),
        ("What the learner does", "percentunit", [rate("learner_seconds", "{{run}} {{phase}}")]),
        ("Learning rate", "sci", [gauge("learning_rate")]),
        ("Staleness in versions", "none", [gauge("staleness_versions")]),
    ],
    "Sample buffer and generators": [
        ("Pairs of the open round", "none", [gauge("round_pairs", EACH_STATE)]),
        ("Pairs ahead of the learner", "none", [gauge("ahead_pairs")]),
        (
            "Generators",
            "none",
            [gauge("generators", EACH_STATE), gauge("generators_wanted", f"{EACH_RUN} wanted")],
        ),
        ("Weights version", "none", [gauge("generator_version", EACH_GENERATOR)]),
        ("Tokens per second", "none", [rate("generator_tokens")]),
        ("Time with requests", "percentunit", [rate("generator_busy_seconds")]),
        ("Requests under way", "none", [gauge("generator_requests", EACH_GENERATOR)]),
        ("Mean response in tokens", "none", [gauge("response_tokens")]),
    ],
    "Weight updates and trouble": [
        (
            "A weight update",
            "s",
            [per_update("update_seconds", "in all"), per_update("update_paused_seconds", "stood still")],
        ),
        ("Difference to the learner in nats", "sci", [gauge("weight_parity_nats", EACH_GENERATOR)]),
        ("Pairs of ended rounds", "none", [gauge("ledger_pairs", EACH_STATE)]),
        (
            "What should not happen",
            "none",
            [
                gauge("warnings", f"{EACH_RUN} warnings"),
                gauge("skipped_steps", f"{EACH_RUN} skipped steps"),
                gauge("generator_deaths", f"{EACH_RUN} generator deaths"),
                gauge("learner_restarts", f"{EACH_RUN} learner restarts"),
            ],
        ),
    ],
    "vLLM's engines (generation.engine_metrics)": [
        (
            "Requests in the engine",
            "none",
            [
                (f"ray_vllm_num_requests_running{ENGINE}", f"{EACH_ENGINE} running"),
                (f"ray_vllm_num_requests_waiting{ENGINE}", f"{EACH_ENGINE} waiting"),
            ],
        ),
        ("KV cache in use", "percentunit", [(f"ray_vllm_kv_cache_usage_perc{ENGINE}", EACH_ENGINE)]),
        (
            "Tokens per second in the engine",
            "none",
            [
                (f"rate(ray_vllm_generation_tokens_total{ENGINE}{RATE})", f"{EACH_ENGINE} written"),
                (f"rate(ray_vllm_prompt_tokens_total{ENGINE}{RATE})", f"{EACH_ENGINE} of prompts"),
            ],
        ),
        ("A request", "s", [quantile("e2e_request_latency_seconds", each) for each in (0.5, 0.95)]),
    ],
}


def panel(title: str, unit: str, queries: list[Query]) -> Panel:
    built = (
        Panel()
        .title(title)
        .unit(unit)
        .height(HEIGHT)
        .span(WIDTH)
        .datasource(SOURCE)
        .fill_opacity(5)
        .legend(
            VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    for letter, (expression, legend) in zip("ABCDEF", queries, strict=False):
        built.with_target(Dataquery().ref_id(letter).expr(expression).legend_format(legend))
    return built


def dashboard() -> Dashboard:
    runs = (
        QueryVariable("run")
        .label("Run")
        .datasource(SOURCE)
        .query("label_values(ray_iris_iteration, run)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
    )
    built = (
        Dashboard("iris-ray")
        .uid("iris-ray")
        .tags(["iris-ray"])
        .refresh("10s")
        .time("now-1h", "now")
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(runs)
    )
    numbers = count(1)
    for title, panels in ROWS.items():
        built.with_row(Row(title).id(next(numbers)))
        for each in panels:
            built.with_panel(panel(*each).id(next(numbers)))
    return built


if __name__ == "__main__":
    print(JSONEncoder(sort_keys=True, indent=1).encode(dashboard().build()))
