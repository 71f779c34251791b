"""evaluate: tokenize, split, all checkpoints -> artifacts/evaluate (scores beside baselines)."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, ClassVar

import pandas as pd
from pydantic import Field, StringConstraints

from gptmill.checkpoint.checkpoint import load_causal_lm
from gptmill.data.questions import Question, read_questions
from gptmill.evaluation.answering import Answer, answer_questions
from gptmill.evaluation.assistant import EXERCISES, score_assistant, score_exercises
from gptmill.evaluation.comparison import Classifiers
from gptmill.evaluation.general import GENERAL, answer_table, score_answers, score_models
from gptmill.evaluation.language_model import LanguageScores, is_another, score_language_models
from gptmill.evaluation.paired import compare
from gptmill.files import read_json, write_csv, write_text
from gptmill.formats.importing import load_model
from gptmill.generation.decoder import GenerationConfig, generate
from gptmill.model.gpt import GPT
from gptmill.tokenizer.tokenizer import Tokenizer
from tasks.frame.run import Metrics, Run
from tasks.frame.stage import Section, stage
from tasks.shared.report import (
    QUALITY,
    answers_page,
    figures,
    general_page,
    report,
    samples_page,
)
from tasks.tracking import plots

COMPARED = {"base": "load_gpt2", "assistant": "instruct"}  # on the general questions
CHECKPOINTS = {"classify": "", "lora": "merged"}  # where a classifier's folder lies in its stage's


class Evaluate(Section):
    """params.yaml `evaluate:`."""

    quality: ClassVar[tuple[str, ...]] = QUALITY
    windows: int = Field(ge=0, description="of the validation part, spread evenly; 0: all")
    prompts: list[Annotated[str, StringConstraints(min_length=1)]]
    generation: GenerationConfig
    resamples: int = Field(gt=0, description="of the test rows, for intervals of F1 and ROC AUC")
    checked_rows: int = Field(gt=0, description="that saved classifiers must predict once more")
    answers_shown: int = Field(gt=0, description="of each kind of question")
    questions: str = Field(description="JSON Lines file of general questions")
    max_new_tokens: int = Field(gt=0, description="the longest answer to a general question")


@stage
def evaluate(params: Evaluate, run: Run) -> Metrics:
    """Score the pretrained model, the classifiers and the assistant on held-out data."""
    device = run.device().device
    predictions = {name: run.input(name) / "predictions.csv" for name in CHECKPOINTS}
    classifiers = Classifiers.read(run.input("split/labelled"), predictions)
    for name, place in CHECKPOINTS.items():
        classifiers.check(name, run.input(name) / place, rows=params.checked_rows, device=device)
    answers = pd.DataFrame(read_json(run.input("instruct") / "answers.json"))
    taught = pd.DataFrame(read_json(run.input("split/instructions") / "train.json"))

    questions = read_questions(run.path(params.questions))
    general = {name: general_answers(params, run, questions, name) for name in COMPARED.values()}
    scores = {name: score_answers(questions, general[folder]) for name, folder in COMPARED.items()}
    resampling = {"resamples": params.resamples, "seed": run.seed}
    exercises = score_exercises(answers, taught)

    language = score_language(params, run, questions)
    tables = {
        "language_model": language.table,
        "classifiers": classifiers.score(**resampling),
        "assistant": score_assistant(answers, taught),
        "assistant_gain": compare(exercises, ("answer", "before"), EXERCISES, **resampling),
        "general": score_models(scores, **resampling),
        "general_gain": compare(scores, ("assistant", "base"), GENERAL, **resampling),
    }
    tables |= language.gains(**resampling)
    if language.other:
        tables["other_text"] = language.other_table(**resampling)
    side_by_side = answer_table(questions, general["load_gpt2"], general["instruct"], scores)
    pages = {
        "samples": samples(params, run),
        "answers": answers_page(answers, params.answers_shown),
        "general_answers": general_page(side_by_side, params.answers_shown),
        "report": report(tables),
    }
    confusions, curves = classifiers.confusions(), classifiers.roc_curves()
    drawn = {f"confusion_{name}": table for name, table in confusions.items()}
    drawn |= {f"roc_{name}": table for name, table in curves.items()}
    for name, table in {**tables, **drawn, "general_answers": side_by_side}.items():
        write_csv(run.out / f"{name}.csv", table)
    for name, page in pages.items():
        write_text(run.out / f"{name}.md", page)
        run.show(name, page)
    run.figure("losses", plots.losses(tables["language_model"]))
    run.figure("confusion_matrices", plots.confusion_matrices(confusions))
    run.figure("roc", plots.roc(curves, positive=classifiers.rarest))
    run.figure("right_answers", plots.right_answers(tables["assistant"]))
    return figures(tables)


def score_language(params: Evaluate, run: Run, questions: Sequence[Question]) -> LanguageScores:
    """Score the pretrained model, and the first weights of a continued training beside it.

    Both read the general questions too: text of another kind, by which forgetting is seen.
    """
    details = read_json(run.input("pretrain") / "details.json")
    start = details.get("start")
    return score_language_models(
        run.input("tokenize"),
        run.input("pretrain"),
        run.input("load_gpt2"),
        start=None if start is None else first_model(run, start),
        other=[question.text for question in questions],
        length=details.get("window_length"),
        windows=params.windows,
        device=run.device().device,
    )


def first_model(run: Run, start: str) -> GPT:
    """Load the first weights of a continued training."""
    tokenizer = run.input("tokenize") / "tokenizer"
    model = load_model(str(run.path(start)), otherwise=tokenizer, classifiers=False).model
    assert isinstance(model, GPT), "classifiers are refused"
    return model


def general_answers(
    params: Evaluate, run: Run, questions: Sequence[Question], folder: str
) -> list[Answer]:
    """Return a model's answers to the general questions; the base's answers are kept.

    The base changes rarely, the assistant with every training.
    """

    def make() -> list[dict[str, Any]]:
        answers = answer_questions(
            run.input(folder),
            questions,
            max_new_tokens=params.max_new_tokens,
            device=run.device().device,
            weights=run.device().precision,
        )
        return [asdict(answer) for answer in answers]

    if folder != "load_gpt2":
        return [Answer(**answer) for answer in make()]
    inputs = [f"artifacts/{folder}", params.questions]
    kept = run.kept(inputs, {"max_new_tokens": params.max_new_tokens}, make)
    return [Answer(**answer) for answer in kept]


def samples(params: Evaluate, run: Run) -> str:
    """Return continuations of the prompts by the pretrained model, and by a separate base."""
    checkpoints = ["pretrain"]
    if is_another(run.input("load_gpt2"), run.input("pretrain")):
        checkpoints.append("load_gpt2")
    pages = []
    for name in checkpoints:
        model, tokenizer = load_causal_lm(run.input(name)), Tokenizer.from_folder(run.input(name))
        prompts = [tokenizer.encode_prompt(prompt) for prompt in params.prompts]
        answers = generate(
            model, prompts, params.generation, stop_ids={tokenizer.eot_id}, seed=run.seed
        )
        page = samples_page(params.prompts, [tokenizer.decode(ids) for ids in answers])
        pages.append(f"## {name}\n\n{page}" if len(checkpoints) > 1 else page)
    return "\n".join(pages)
