#!/bin/sh
# A classifier behind FastAPI whose score is NaN or infinite for one request: an overflow, a division by zero.
# Versions: fastapi 0.165.0, starlette 1.10.0, pydantic 2.14.4, httpx 0.28.1.
# Guess: JSON has no NaN, and starlette writes with allow_nan=False: the request ends as 500 and is seen in the logs and
#   in the rate of errors, however the function's answer is declared.
# Behaviour: it depends on the annotation. A function that declares its model (-> Answer, or response_model) answers 200
#   with null in place of the number. The client gets a success without a score; the very model that the server
#   declared, and the schema in its OpenAPI document ("type": "number"), refuse that answer. The same object from a
#   function without an annotation, or as a dict, is 500. ser_json_inf_nan="strings" in the model's configuration
#   sends "NaN", which the model reads.
# Output seen (status and body): declared: 200 {"label":"cat","score":null}, which Answer refuses; the same without the
#   annotation: 500; a dict: 500; declared, with strings: 200 {"label":"cat","score":"NaN"}.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check fastapi==0.165.0 starlette==1.10.0 pydantic==2.14.4 \
    httpx==0.28.1
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PY'
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict, ValidationError


class Answer(BaseModel):
    label: str
    score: float


class WithStrings(Answer):
    model_config = ConfigDict(ser_json_inf_nan="strings")


app = FastAPI()
SCORE = float("nan")


@app.get("/declared")
def declared() -> Answer:
    return Answer(label="cat", score=SCORE)


@app.get("/undeclared")
def undeclared():
    return Answer(label="cat", score=SCORE)


@app.get("/dict")
def as_dict():
    return {"label": "cat", "score": SCORE}


@app.get("/strings")
def strings() -> WithStrings:
    return WithStrings(label="cat", score=SCORE)


client = TestClient(app, raise_server_exceptions=False)
seen = {path: client.get(f"/{path}") for path in ("declared", "undeclared", "dict", "strings")}
for path, answer in seen.items():
    print(f"{path}: {answer.status_code} {answer.text}")
assert seen["declared"].status_code == 200, "a declared answer with NaN is an error now"
assert seen["declared"].json() == {"label": "cat", "score": None}
assert seen["undeclared"].status_code == seen["dict"].status_code == 500
try:
    Answer.model_validate_json(seen["declared"].content)
    raise SystemExit("the model reads its own answer now")
except ValidationError as err:
    print("the client's model:", err.errors()[0]["msg"])
assert app.openapi()["components"]["schemas"]["Answer"]["properties"]["score"]["type"] == "number"
assert seen["strings"].json()["score"] == "NaN"
PY
