#!/usr/bin/env bash
# The main job from end to end on generated scans: check, train, evaluate, predict, export. Everything stays below .demo/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

demo=.demo
run=$demo/run
common=(data=phantom "data.root=$demo/phantom" "data.store=$demo/store")
rm -rf "$run" "$demo/predictions" "$demo/export"

say() { printf '\n== %s\n' "$*"; }
do_it() { say "medtrain $*"; medtrain "$@"; }

do_it data check "${common[@]}"
do_it train "${common[@]}" "run.dir=$run" "trainer.max_time=${DEMO_TIME:-120s}" trainer.eval_every=20%
do_it evaluate "$run"
do_it predict "$run" "$demo/phantom/imagesTs" "$demo/predictions"
do_it export "$run" --format onnx --format torchscript --out "$demo/export"
say "done: look at $run/report.md, $run/progress.png, $run/previews, $demo/predictions and $demo/export"
