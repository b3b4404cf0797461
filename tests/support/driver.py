"""Run one stage and print its reference: ``python driver.py JSON``. Errors as the command line reports them."""

import json
import sys

from dalle_model.errors import DalleError
from tasks.artifacts import ArtifactRef
from tasks.settings import Settings
from tasks.stages import ALL_STAGES
from tasks.step import run_step

if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    stage = ALL_STAGES[order["stage"]]
    inputs = {name: ArtifactRef(**ref) for name, ref in order["inputs"].items()}
    log = []
    try:
        config = stage.config.model_validate(order["config"])
        result = run_step(stage, config, inputs, Settings(**order["settings"]), log.append)
    except DalleError as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    lines = [event["text"] for event in log if event["event"] == "log"]
    print(json.dumps({"ref": result.ref.model_dump(), "reused": result.reused, "log": lines}))
