"""The reference of artifacts and of MLflow's records.

The stages come from dvc.yaml. tests/promises/test_pipeline.py compares the files, tags and metrics
with those of a run.
"""

from docs.site.markdown import code, table
from tasks.project import graph

CHECKPOINT = {
    "README.md": "model card: shape, data with source, licence and hash, figures",
    "config.json": "architecture, as transformers reads it",
    "generation_config.json": "ids that end a text",
    "chat_template.jinja": "template of conversations, where the model has one",
    "model.safetensors": "weights",
    "merges.txt": "GPT-2's merges (a vocabulary of other kinds is a tokenizer.json)",
    "vocab.json": "ids of GPT-2's vocabulary",
    "tokenizer.json": "tokenizer of a base that is not GPT-2's",
    "tokenizer_config.json": "class and special tokens, as transformers reads them",
    "special_tokens_map.json": "special tokens of the base",
}
DETAILS = {"details.json": "the stage's other figures: counts, sizes, bounds, baselines"}
FIGURES = {"metrics.json": "the stage's figures of quality, which `dvc metrics` shows", **DETAILS}
TRAINING = {
    "training.csv": "a row per step: loss, learning rate, gradient norm, batch digest",
    "evaluations.csv": "a row per evaluation of the validation part; step 0 is before training",
    **FIGURES,
}
CLASSIFIER = {"predictions.csv": "probability of each class for each test row"}
TEXTS = {
    **DETAILS,
    "origins.json": "the raw files behind the output: source, licence, hash",
}
FILES: dict[str, dict[str, str]] = {
    "tokenize": {
        "train.bin, validation.bin": "ids, little-endian uint16 or uint32, memory-mapped",
        "train.json, validation.json": "header of the token file: type, documents, vocabulary",
        "mixture.json": "shares of the sources, asked for and drawn, where sources have weights",
        "tokenizer/": "the vocabulary, as in a checkpoint",
        "statistics.json": "documents, characters, bytes and tokens of each part",
        **FIGURES,
        **TEXTS,
    },
    "sample": {
        "train.npy, validation.npy": "position of each window's first id, int64",
        "train.json, validation.json": "length and stride of the windows",
        "first_batch.md": "the first training batch as text",
        **TEXTS,
    },
    "pretrain": {**CHECKPOINT, **TRAINING, "samples.md": "texts while training and at the end"},
    "load_gpt2": {**CHECKPOINT, **TEXTS},
    "split": {
        "labelled/": "train.csv, validation.csv and test.csv, with their origins",
        "instructions/": "train.json, validation.json and test.json, with their origins",
        **TEXTS,
    },
    "lora": {
        "adapter/": "adapter in PEFT's layout",
        "merged/": "classifier with the adapter merged in, a checkpoint",
        **CLASSIFIER,
        **TRAINING,
    },
    "classify": {**CHECKPOINT, **CLASSIFIER, **TRAINING},
    "instruct": {
        **CHECKPOINT,
        **TRAINING,
        "answers.json": "answers to the test part",
        "adapter/": "adapter in PEFT's layout, unless all weights were trained",
    },
    "evaluate": {
        "report.md": "all figures beside their baselines, with 95 % intervals",
        "answers.md, general_answers.md": "answers of base and assistant, side by side",
        "general_answers.csv": "every general question with both answers and checks",
        "samples.md": "texts of the generator",
        "language_model.csv, classifiers.csv, assistant.csv, general.csv": "tables of the report",
        "assistant_gain.csv, general_gain.csv": "paired differences of assistant and base",
        "continued_gain.csv, continued_other.csv, other_text.csv": (
            "a continued model and its start, on held-out documents and on other text"
        ),
        "confusion_*.csv, roc_*.csv": "confusion matrix and ROC curve of each classifier",
        **FIGURES,
    },
}
TAGS = {
    "stage": "name of the stage, or `pipeline`",
    "base": "base weights of a pipeline run (`configs/bases/`)",
    "dvc.dep.PATH, dvc.out.PATH": "hash of an input or output, as in dvc.lock",
    "dvc.stage_key": "key of a training: equal keys resume each other",
    "dvc.lock": "hash of dvc.lock after a pipeline run",
    "stage.NAME": "state of a stage in a pipeline run, with the id of the stage's run",
    "gate, gate.KIND": "decision about a model, with the reasons",
    "git.dirty": "whether the working tree had uncommitted edits",
    "gptmill.run, gptmill.process": "token of the run, and the process that writes the run",
    "gptmill.model": "kind of the logged model",
    "prefect.flow_run_id": "the flow run in Prefect",
    "resumed_at": "step at which a training resumed",
    "restored": "true for outputs from DVC's cache or a remote, which no run in the store made",
    "override.KEY": "value of a param that a pipeline run has of its own",
    "stages, force": "of a pipeline run of some stages, or of stages that had to run",
    "gptmill.ref, gptmill.commit": "git ref and commit of a pipeline run's tree",
    "model.uri": "address of the registered version that the run made",
    "bad_batches": "number of batches skipped by the guard",
    "continued.NAME": "value of a tag before the run was resumed, where it changed",
    "error": "reason of a failure",
    "verdict, gate.reasons": "on a model version: outcome of the comparison with the champion",
    "sweep, best.*": "on a sweep: its name, and the best trial",
    "mlflow.*": "MLflow's own: user, commit, parent run, description",
}
METRICS = {
    "train/loss": "mean loss of a step, in nats per counted token",
    "val/loss, val/accuracy": "validation part, at each evaluation",
    "learning_rate, grad_norm": "of a step",
    "skipped": "1 for a step without an update",
    "tokens_per_second, data_wait, micro_batch": "speed, share of waiting, rows",
    "mfu, mfu_*": "share of the device's peak arithmetic",
    "peak_memory_gb, seconds_left": "memory, and the estimated rest of the time",
    "cost/seconds, cost/cpu_seconds, cost/peak_memory_gb": "of the stage",
    "cost/gpu_energy_wh, cost/cpu_energy_wh": (
        "watt-hours of the stage's GPUs and of the machine's CPU packages, by their own counters; "
        "absent where a counter cannot be read, and for a stage on several machines"
    ),
    "system/*": "CPU, memory, disk, network and GPU of the machine, once every 10 seconds",
    "every key of metrics.json and details.json": "the stage's final figures",
}
RUN_FILES = {
    "report.html, compare-KIND.html": "pages on a pipeline run, and on each gate's decision",
    "record/": "params, sources, hashes, uncommitted changes and packages of a pipeline run",
    "*.json": "tables of predictions and answers, for MLflow's view of several runs",
}


def page() -> str:
    """Return the page."""
    parts = [
        "# Artifacts and records\n\nEach stage writes `artifacts/STAGE`. Nothing in there varies "
        "between two runs of a commit: no time, path, host or speed, which go to MLflow. "
        "Formats are safetensors, JSON, CSV, NumPy arrays and Markdown.\n"
    ]
    for name, entry in graph.stages().items():
        reads = ", ".join(
            code(dep) for dep in entry["deps"] if dep.startswith(("artifacts", "data"))
        )
        rows = [(code(file), meaning) for file, meaning in FILES[name].items()]
        about = (
            f"{entry['desc'].capitalize()}. Reads {reads}. Main figure: {entry['meta']['main']}."
        )
        parts.append(f"## {name}\n\n{about}\n\n{table(('file', 'contents'), rows)}")
    parts.append("## MLflow tags\n\n" + table(("tag", "meaning"), _rows(TAGS)))
    parts.append("## Files of MLflow's runs\n\n" + table(("file", "contents"), _rows(RUN_FILES)))
    parts.append("## MLflow metrics\n\n" + table(("metric", "meaning"), _rows(METRICS)))
    return "\n".join(parts)


def _rows(meanings: dict[str, str]) -> list[tuple[str, str]]:
    return [(code(name), meaning) for name, meaning in meanings.items()]
