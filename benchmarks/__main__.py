"""Run the benchmarks, all or by name: `python -m benchmarks [NAME ...] [--rounds N]`."""

import argparse

from benchmarks import (
    adaptation,
    adapters,
    codec,
    download,
    engine,
    flight,
    forgetting,
    http_layer,
    learning,
    products,
    server_load,
    shakespeare,
    single_stream,
    sparsity,
    start_up,
    store,
    tenants,
    training,
    vdb,
)

BENCHMARKS = {
    "single_stream": single_stream.main,
    "products": products.main,
    "engine": engine.main,
    "start_up": start_up.main,
    "vdb": vdb.main,
    "adapters": adapters.main,
    "store": store.main,
    "codec": codec.main,
    "sparsity": sparsity.main,
    "training": training.main,
    "download": download.main,
    "http_layer": http_layer.main,
    "server_load": server_load.main,
    "learning": learning.main,
    "shakespeare": shakespeare.main,
    "forgetting": forgetting.main,
    "tenants": tenants.main,
    "adaptation": adaptation.main,
    "flight": flight.main,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], default=[])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of each peer")
    parser.add_argument(
        "--quick", action="store_true", help="leave out of `codec` what is trained on SmolLM2"
    )
    arguments = parser.parse_args()
    for name in arguments.names or BENCHMARKS:
        if name == "codec":
            codec.main(arguments.rounds, quick=arguments.quick)
        else:
            BENCHMARKS[name](arguments.rounds)


if __name__ == "__main__":
    main()
