"""What is exported as GGUF opens in llama.cpp itself, which no Python package carries built.

`npm install --ignore-scripts node-llama-cpp` in a folder, and GPTMILL_NODE_LLAMA_CPP names it.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gptmill.checkpoint.checkpoint import save_causal_lm
from gptmill.formats.exporting import export_model
from gptmill.generation.decoder import generate
from tests.support.decoders import babbler, greedy
from tests.support.tiny import tiny_tokenizer

FOLDER = os.environ.get("GPTMILL_NODE_LLAMA_CPP", "")
TEXT = "And God said, don't 12 \n  ünto"
PROGRAM = """
import {getLlama, LlamaLogLevel} from "node-llama-cpp";
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});
const [path, text, count] = process.argv.slice(2);
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext({contextSize: 64, threads: 1});
const ids = model.tokenize(text, false), found = [];
for await (const id of context.getSequence().evaluate(ids, {temperature: 0, yieldEogToken: true})) {
  if (found.push(id) == Number(count)) break;
}
console.log(JSON.stringify({ids, found}));
process.exit(0);
"""


@pytest.mark.skipif(not FOLDER, reason="GPTMILL_NODE_LLAMA_CPP names no folder with it")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_llama_cpp_reads_the_same_ids_and_answers_with_the_same(
    family: str, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    model = babbler(64, family)
    save_causal_lm(tmp_path / "model", model, tokenizer)
    export_model(tmp_path / "model", tmp_path / "model.gguf", form="gguf")
    program = Path(FOLDER) / "gptmill_test.mjs"
    program.write_text(PROGRAM, encoding="utf-8")
    node = shutil.which("node")
    assert node
    done = subprocess.run(
        [node, program, tmp_path / "model.gguf", TEXT, "30"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    ids = tokenizer.encode(TEXT)
    assert answer["ids"] == ids
    assert answer["found"] == generate(model, [ids], greedy(30), stop_ids=(), seed=1)[0]
