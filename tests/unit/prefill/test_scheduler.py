"""The prefill scheduler: chunks in order, jobs in order of arrival."""

from services.prefill.scheduler import Chunk, Job, Scheduler


def drain(scheduler: Scheduler) -> list[Chunk]:
    chunks = []
    while (chunk := scheduler.next_chunk()) is not None:
        chunks.append(chunk)
        scheduler.finished_chunk(chunk)
    return chunks


def test_a_job_is_cut_into_chunks_that_cover_it_once() -> None:
    scheduler = Scheduler(512)
    job = Job(64, 1300)
    scheduler.add(job)
    assert [(c.first, c.end) for c in drain(scheduler)] == [(64, 576), (576, 1088), (1088, 1300)]
    assert len(scheduler) == 0


def test_jobs_are_served_in_order_of_arrival() -> None:
    scheduler = Scheduler(512)
    first, second = Job(0, 1024), Job(0, 64)
    scheduler.add(first)
    scheduler.add(second)
    assert [c.job for c in drain(scheduler)] == [first, first, second]


def test_asking_twice_gives_the_same_chunk() -> None:
    scheduler = Scheduler(512)
    scheduler.add(Job(0, 1024))
    assert scheduler.next_chunk() == scheduler.next_chunk()


def test_a_removed_job_is_not_continued() -> None:
    scheduler = Scheduler(512)
    job, other = Job(0, 1024), Job(0, 64)
    scheduler.add(job)
    scheduler.add(other)
    chunk = scheduler.next_chunk()
    assert chunk is not None
    assert not scheduler.finished_chunk(chunk)
    scheduler.remove(job)
    scheduler.remove(job)
    assert [c.job for c in drain(scheduler)] == [other]
