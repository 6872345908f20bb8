# `just` lists what there is. CI runs `./test`, byte for byte.
default:
    @just --list

# all that CI runs
ci:
    ./test

# the tour
demo:
    ./demo

# figures, side by side with peers in the same run: `run` (deploys), `runtime` (crun and podman), `image` (buildah, mmdebstrap, mkosi), `edge` (haproxy and nginx) or `control` (a pass of the planner)
bench what="run":
    ./bench/{{what}}

# longer forms: more simulated seeds, more kills, thousands of starts, minutes of damaged input per decoder
nightly:
    cargo run --release -p kiln-sim -- seeds --count 200000 --threads 2
    cargo run --release -p kiln-sim -- pairs
    cargo run --release -p kiln-sim -- mutants --pairs
    KILN_SEEDS=2000 cargo test --release -p kiln-plan --test world
    KILN_FUZZ=300 cargo test --release -p kiln-image --test fuzz -- --nocapture
    KILN_SOAK=10000 KILN_LOGGERS=200 KILN_LOG_SECONDS=60 cargo test --release -p kiln-provider --test soak
    KILN_FRAMING=200000 KILN_UPGRADES=300 KILN_SWITCHES=10000 cargo test -p kiln-edge --test edge -- framing_is case_22 case_03
    KILN_SWITCH_PAUSE_MS=60 cargo test --release -p kiln-edge --test edge -- case_03
    KILN_KILLS=200 KILN_SEED=7 ./test e2e
    .ci/mirror target/debug/kiln nightly
    KILN_PACKAGES=all cargo test -p kiln-image --test debian
    KILN_PACKAGES=all cargo test -p kiln-tests --test e2e -- debian
    KILN_NIGHTLY=1 cargo test --package kiln-tests --test e2e -- machines old_host acceptance
    KILN_ROLLOUTS=500 cargo test --package kiln-tests --test e2e -- soak_of_rollouts
