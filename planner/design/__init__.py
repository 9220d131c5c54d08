"""What to train: compute allocation, model shape, hyperparameters, the pilots and the target run.

Turns a budget in any currency into concrete runs that are feasible on the cluster, or says what to change in the
budget. Front door: `planner.design.inputs.load_inputs` loads what a budget names; `target_run` and `pilot_runs` draft
the runs."""
