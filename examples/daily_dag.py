"""A pipeline for every day: Airflow.

The steps of [daily.sh](daily.sh) as tasks of a DAG, one after the other. A model that loses fails the task
`test`, and the one in use stays. Runs of two days must not overlap, as they share the folders
(`max_active_runs`).

Copy both files into the folder of DAGs, and name the folder of the pipeline in the Airflow variable
`crops_folder`.
"""

from datetime import datetime
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

SCRIPT = Path(__file__).with_name("daily.sh")
FOLDER = "{{ var.value.crops_folder }}"

with DAG("crops", schedule="@daily", start_date=datetime(2026, 1, 6), max_active_runs=1, catchup=False):
    before = None
    for step in ("import", "check", "mine", "train", "test", "serve"):
        task = BashOperator(
            task_id=step, bash_command=f"sh {SCRIPT} {step} {{{{ ds }}}}", cwd=FOLDER, retries=2
        )
        if before is not None:
            before >> task
        before = task
