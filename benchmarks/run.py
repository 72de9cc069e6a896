"""All benchmarks, one after the other. Every table is of ratios measured in one run.

Command: python benchmarks/run.py [--quick]
"""

import argparse

import clip_step
import collapse_monitor
import dino_step
import joint_step
import mae_step
import nt_xent
import views

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, to see that it runs")
    arguments = parser.parse_args()
    for benchmark in (mae_step, joint_step, dino_step, clip_step, views, nt_xent, collapse_monitor):
        benchmark.run(quick=arguments.quick)
