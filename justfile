# `just` lists what there is. CI runs `./test`, byte for byte.
default:
    @just --list

# all that CI runs
ci:
    ./test

# the tour
demo:
    ./demo

# figures, side by side with crun and podman in the same run
bench:
    ./bench/run

# longer forms: more simulated seeds, more kills
nightly:
    KILN_SEEDS=2000 cargo test --release -p kiln-plan --test world
    KILN_KILLS=200 KILN_SEED=7 ./test e2e
    KILN_NIGHTLY=1 cargo test --package kiln-tests --test e2e -- machines
