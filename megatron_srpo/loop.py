"""One training step on one screen, and the loop around it."""

from megatron_srpo.session.run import Run


def train(run: Run) -> None:
    """Train to the last step, evaluating and saving on the way."""
    run.start()
    while run.step < run.config.training.steps:
        train_step(run)
        run.finish_step()
    run.finish()


def train_step(run: Run) -> None:
    """Sample, score, route, teach, update, publish."""
    with run.phase("generate"):
        rollouts = run.generate()
    with run.phase("reward"):
        batch = run.reward(rollouts)
        assignment = run.assign(batch)
    with run.phase("score"):
        old = run.trainer.score(batch.sequences)
        reference = run.trainer.score_reference(batch.sequences)
    with run.phase("teacher"):
        lessons = run.teach(batch, assignment)
    with run.phase("update"):
        streams = run.streams(batch, assignment, old, lessons)
        results = run.update(batch, streams, old, reference, lessons)
        run.trainer.teacher.update()
    with run.phase("sync"):
        run.publish_weights()
    run.record(batch, assignment, old, lessons, streams, results)
