"""What surrounds each line of the table in docs/recipes/torch.md, in place of LINE."""

# The modules that a library needs, and options of tests.support.clients.run
LIBRARIES = {
    "peft": (("peft", "transformers", "accelerate"), {}),
    "trl": (("trl",), {}),
    "ignite": (("ignite",), {}),
    "opacus": (("opacus",), {}),
    "stable-baselines3": (("stable_baselines3",), {}),
    "pyro": (("pyro",), {}),
    "pytorch_optimizer": (("pytorch_optimizer",), {}),
    "DeepSpeed": (("deepspeed",), {"processes": 2}),
    "Ray Train": (("ray",), {}),
    "MLflow": (("mlflow",), {}),
    "Optuna": (("optuna",), {}),
    "Hydra": (("hydra",), {}),
}

REGRESSION = """
import torch
from torch.nn.functional import mse_loss as loss_fn

from gravity_torch import Gravity

torch.manual_seed(0)
x = torch.rand(32, 4)
y = x.sum(dim=1, keepdim=True)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
before = loss_fn(model(x), y).item()


def train(optimizer, epochs=5):
    for _ in range(epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss_fn(model(inputs), targets).backward()
            optimizer.step()


def has_learnt():
    return loss_fn(model(x), y).item() < before / 2
"""

LANGUAGE = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gravity_torch import Gravity

torch.manual_seed(0)
rows = torch.randint(2, 32, (16, 8))
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
)
"""

SCAFFOLDS = {
    "peft": LANGUAGE
    + """
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

arguments = TrainingArguments(
    "run", max_steps=3, use_cpu=True, report_to="none", disable_tqdm=True
)
data = [{"input_ids": row, "labels": row} for row in rows]
LINE
trainer.train()
trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
assert trained and all("lora_" in name for name in trained)
assert all(p.detach().any() for name, p in trained.items() if "lora_B" in name)
assert {id(p) for p in trainer.optimizer.optimizer.state} == {id(p) for p in trained.values()}
""",
    "trl": LANGUAGE
    + """
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

words = Tokenizer(WordLevel({"[PAD]": 0, "[EOS]": 1}, unk_token="[PAD]"))
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]"
)
data = Dataset.from_dict({"input_ids": rows.tolist()})
arguments = SFTConfig(
    "run",
    max_steps=3,
    learning_rate=0.7,
    bf16=False,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
LINE
trainer.train()
assert trainer.optimizer.param_groups[0]["initial_lr"] == 0.1
assert trainer.optimizer.state[next(model.parameters())]["step"] == 3
""",
    "ignite": REGRESSION
    + """
from ignite.engine import create_supervised_trainer

LINE
trainer.run(loader, max_epochs=5)
assert has_learnt()
""",
    "opacus": REGRESSION
    + """
from opacus import PrivacyEngine

LINE
train(optimizer)
assert has_learnt()
""",
    "stable-baselines3": """
import torch
from stable_baselines3 import PPO

from gravity_torch import Gravity

environment = "CartPole-v1"
LINE
before = [p.detach().clone() for p in agent.policy.parameters()]
agent.learn(128)
assert type(agent.policy.optimizer) is Gravity
assert agent.policy.optimizer.param_groups[0]["lr"] == 0.05
for old, new in zip(before, agent.policy.parameters(), strict=True):
    assert new.isfinite().all() and not torch.equal(old, new)
""",
    "pyro": """
from zlib import crc32

import pyro
import torch
from pyro.distributions import Normal, constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import PyroOptim

from gravity_torch import Gravity

pyro.set_rng_seed(0)
n = 200
data = torch.randn(n) + 3
mean = pyro.poutine.scale(scale=1 / n)


def model():
    location = pyro.sample("location", Normal(0.0, 10.0))
    with pyro.plate("data", n):
        pyro.sample("x", Normal(location, 1.0), obs=data)


def guide():
    center = pyro.param("center", torch.tensor(0.0))
    width = pyro.param("width", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("location", Normal(center, width))


LINE
for _ in range(500):
    svi.step()
assert abs(pyro.param("center") - data.mean()) < 0.2
""",
    "pytorch_optimizer": REGRESSION
    + """
from pytorch_optimizer import SAM, WSAM

LINE
assert optimizer.param_groups[0]["velocity_std"] == 0.1


def closure():
    optimizer.zero_grad()
    loss = loss_fn(model(x), y)
    loss.backward()
    return loss


for _ in range(20):
    optimizer.step(closure)
assert has_learnt()
assert abs(SAM(model.parameters(), Gravity, lr=0.2).param_groups[0]["velocity_std"] - 0.05) < 1e-9
""",
    "DeepSpeed": REGRESSION
    + """
import deepspeed

deepspeed.init_distributed("gloo")
rank = torch.distributed.get_rank()
LINE
for inputs, targets in [*loader][rank::2] * 8:
    engine.backward(loss_fn(engine(inputs), targets))
    engine.step()
assert has_learnt()
weights = torch.cat([p.detach().flatten() for p in model.parameters()])
both = [torch.empty_like(weights) for _ in range(2)]
torch.distributed.all_gather(both, weights)
assert torch.equal(*both)
""",
    "Ray Train": """
import ray
from ray.train import ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model


def loop():
    import torch

    from gravity_torch import Gravity

    torch.manual_seed(0)
    model = prepare_model(torch.nn.Linear(4, 1))
    optimizer = Gravity(model.parameters(), lr=0.1)
    x = torch.full((2, 4), 1.0 + get_context().get_world_rank())  # another batch per process
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    both = [torch.empty_like(weights) for _ in range(2)]
    torch.distributed.all_gather(both, weights)
    assert torch.equal(*both)


if __name__ == "__main__":
    ray.init(num_cpus=3, include_dashboard=False)
    LINE
    assert trainer.fit().error is None
    ray.shutdown()
""",
    "MLflow": REGRESSION
    + """
import mlflow

mlflow.set_tracking_uri("file:./runs")
optimizer = Gravity(model.parameters(), lr=0.2)
with mlflow.start_run() as run:
    LINE
logged = mlflow.get_run(run.info.run_id).data.params
assert (logged["lr"], logged["velocity_std"]) == ("0.2", str(0.01 / 0.2))
""",
    "Optuna": REGRESSION
    + """
import copy

import optuna

start = copy.deepcopy(model.state_dict())


def objective(trial):
    model.load_state_dict(start)
    LINE
    train(optimizer)
    return loss_fn(model(x), y).item()


study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
study.optimize(objective, n_trials=5)
assert study.best_value < before / 2
""",
    "Hydra": REGRESSION
    + """
from hydra.utils import instantiate

LINE
train(optimizer)
assert has_learnt()
""",
}
