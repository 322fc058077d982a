"""metrics.csv: columns may appear late, and rows survive what a logger usually does to a folder in use."""

from __future__ import annotations

from pathlib import Path

from kalm.runs.loggers import MetricsFileLogger


def test_late_metric_becomes_a_column_of_the_whole_file(tmp_path: Path) -> None:
    """Earlier rows leave it empty; the step comes first, whole."""
    logger = MetricsFileLogger(tmp_path / "metrics.csv")
    logger.log_metrics({"train/loss": 0.5}, step=10.0)  # type: ignore[arg-type]
    logger.save()
    logger.log_metrics({"eval/rate": 1.0}, step=20)
    logger.log_metrics({"train/loss": 0.25}, step=20)
    logger.finalize("success")
    lines = (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert lines == ["step,eval/rate,train/loss", "10,,0.5", "20,1.0,", "20,,0.25"]


def test_resumed_logger_keeps_rows_up_to_its_update(tmp_path: Path) -> None:
    """What a killed run logged after its checkpoint is dropped; a fresh run drops all."""
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n10,1\n20,2\n30,3\n", encoding="utf-8")
    resumed = MetricsFileLogger(path, resumed_update=20)
    resumed.log_metrics({"loss": 4.0}, step=30)
    resumed.save()
    assert path.read_text(encoding="utf-8") == "step,loss\n10,1\n20,2\n30,4.0\n"
    fresh = MetricsFileLogger(path)
    fresh.log_metrics({"loss": 5.0}, step=1)
    fresh.save()
    assert path.read_text(encoding="utf-8") == "step,loss\n1,5.0\n"


def test_nothing_to_log_writes_nothing(tmp_path: Path) -> None:
    """A run that ends before its first metric leaves no file, and does not touch an earlier one."""
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n10,1\n", encoding="utf-8")
    logger = MetricsFileLogger(path)
    logger.log_metrics({}, step=1)
    logger.finalize("failed")
    assert path.read_text(encoding="utf-8") == "step,loss\n10,1\n"
