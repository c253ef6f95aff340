# Each target sets everything up first; a second time that takes no time.
export HF_HUB_OFFLINE := 1
python := .venv/bin/python

.PHONY: demo test lint clean
.DEFAULT_GOAL := demo

demo:
	@scripts/setup.sh
	$(python) -m apprentice run recipes/demo.yaml

test:
	@scripts/setup.sh browser
	$(python) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint:
	@scripts/setup.sh
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

# Leaves .venv and runs, which cost time to make again.
clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
	find src tests scripts -name __pycache__ -prune -exec rm -rf {} +
