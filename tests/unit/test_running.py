"""host/worker/running.py: in place if it can, one task identity throughout, cancellation and context as asyncio."""

import asyncio
import contextvars

from roost.host.worker.running import Runner, Suspended, in_context

mark = contextvars.ContextVar("mark", default="unset")


def start(runner, coroutine, ended):
    """As the host does it: from a callback, not from a task."""
    result = runner.start(contextvars.Context(), coroutine)
    if type(result) is Suspended:
        result.then(lambda result, error: ended.append((result, error)))
    return result


async def settled(runner):
    """Nothing is left to do, but for the runner's spare task; or it waits for long."""
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.2  # some bodies leave a task behind that sleeps for seconds, on purpose
    for _ in range(5):
        await asyncio.sleep(0)
    while loop.time() < until:
        spare = None if runner._spare is None else runner._spare.task
        if not asyncio.all_tasks() - {asyncio.current_task(), spare}:
            return
        await asyncio.sleep(0.001)


def from_callback(body):
    """Run `body(loop, runner)` in a callback of a fresh loop, then let the loop settle."""

    async def main():
        loop = asyncio.get_running_loop()
        runner = Runner(loop)
        failure = []

        def call():
            try:
                body(loop, runner)
            except BaseException as error:
                failure.append(error)

        loop.call_soon(call)
        await settled(runner)
        runner.close()
        await asyncio.sleep(0)
        if failure:
            raise failure[0]

    asyncio.run(main())


def test_a_coroutine_that_never_waits_makes_no_task():
    tasks = []

    async def quick():
        tasks.append(asyncio.current_task())
        return 5

    def body(loop, runner):
        assert start(runner, quick(), []) == 5
        first = len(asyncio.all_tasks(loop))
        for _ in range(100):
            assert start(runner, quick(), []) == 5
        assert len(asyncio.all_tasks(loop)) <= first + 100

    from_callback(body)
    assert all(isinstance(task, asyncio.Task) for task in tasks)


def test_spare_is_used_again_if_nobody_kept_it():
    seen = []

    async def quick():
        seen.append(id(asyncio.current_task()))

    from_callback(lambda loop, runner: [start(runner, quick(), []) for _ in range(50)])
    assert len(set(seen)) == 1


def test_spare_that_a_handler_kept_is_not_given_to_another():
    kept = []

    async def keeps():
        kept.append(asyncio.current_task())

    async def cancels_the_previous():
        kept[0].cancel()
        await asyncio.sleep(0.001)
        return "mine went on"

    ended = []

    def body(loop, runner):
        start(runner, keeps(), [])
        assert type(start(runner, cancels_the_previous(), ended)) is Suspended

    from_callback(body)
    assert ended == [("mine went on", None)]


def test_task_identity_and_timeouts():
    seen = []

    async def waits():
        seen.append(asyncio.current_task())
        async with asyncio.timeout(1):
            await asyncio.sleep(0)
            seen.append(asyncio.current_task())
            await asyncio.sleep(0.001)
        seen.append(asyncio.current_task())
        return "done"

    ended = []
    from_callback(lambda loop, runner: start(runner, waits(), ended))
    assert len(set(map(id, seen))) == 1
    assert ended == [("done", None)]


def test_timeout_that_fires():
    ended = []

    async def waits():
        try:
            async with asyncio.timeout(0.005):
                await asyncio.sleep(5)
        except TimeoutError:
            return "timed out"

    async def at_once():
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(5)
        except TimeoutError:
            return "at once"

    def body(loop, runner):
        start(runner, waits(), ended)
        start(runner, at_once(), ended)

    from_callback(body)
    assert sorted(result for result, _ in ended) == ["at once", "timed out"]


def test_cancelled_in_the_turn_that_suspended_it():
    ended, cleaned = [], []
    tasks = []

    async def first():
        tasks.append(asyncio.current_task())
        try:
            await asyncio.sleep(5)
        finally:
            cleaned.append(True)

    async def second():
        tasks[0].cancel()

    def body(loop, runner):
        start(runner, first(), ended)
        start(runner, second(), [])

    from_callback(body)
    assert cleaned == [True]
    assert isinstance(ended[0][1], asyncio.CancelledError)


def test_exceptions():
    async def now():
        raise ValueError("now")

    async def later():
        await asyncio.sleep(0)
        raise ValueError("later")

    ended = []

    def body(loop, runner):
        try:
            start(runner, now(), ended)
            raise AssertionError
        except ValueError as error:
            assert str(error) == "now"
        start(runner, later(), ended)

    from_callback(body)
    assert str(ended[0][1]) == "later"


def test_each_run_has_its_own_variables():
    seen = []

    async def sets(value):
        seen.append(mark.get())
        mark.set(value)
        await asyncio.sleep(0)
        seen.append(mark.get())

    async def sets_now(value):
        seen.append(mark.get())
        mark.set(value)

    def body(loop, runner):
        start(runner, sets_now("a"), [])
        start(runner, sets("b"), [])
        start(runner, sets("c"), [])

    from_callback(body)
    assert seen == ["unset", "unset", "unset", "b", "c"]


def test_in_context_is_the_same_task_with_other_variables():
    seen = []

    async def callee():
        seen.append((mark.get(), asyncio.current_task()))
        await asyncio.sleep(0)
        mark.set("callee's")
        seen.append((mark.get(), asyncio.current_task()))
        return "answer"

    async def main():
        mark.set("caller's")
        variables = contextvars.Context()
        assert await in_context(variables, callee()) == "answer"
        assert mark.get() == "caller's"
        assert [task for _, task in seen] == [asyncio.current_task()] * 2
        try:
            await in_context(contextvars.Context(), fails())
            raise AssertionError
        except KeyError:
            pass

    async def fails():
        await asyncio.sleep(0)
        raise KeyError

    asyncio.run(main())
    assert [value for value, _ in seen] == ["unset", "callee's"]


def test_what_is_driven_in_place_gives_its_result_and_nothing_of_the_one_before():
    class Awaitable:  # as of a compiled coroutine: it is no generator and no iterator
        def send(self, value):
            raise AssertionError("it is awaited instead")

        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            return "awaited"

    async def value(given):
        return given

    async def fails():
        raise ValueError("mine")

    ended, results = [], []

    def body(loop, runner):
        results.append(start(runner, value({"a": 1}), []))
        results.append(start(runner, value(None), []))
        try:
            start(runner, fails(), [])
        except ValueError as error:
            results.append(str(error))
        results.append(start(runner, value(2), []))
        start(runner, Awaitable(), ended)
        results.append(start(runner, value(3), []))

    from_callback(body)
    assert results == [{"a": 1}, None, "mine", 2, 3]
    assert ended == [("awaited", None)]


def test_many_that_wait_end_each_with_its_own():
    async def waits(turns, value):
        for _ in range(turns):
            await asyncio.sleep(0)
        if value == 3:
            raise KeyError(value)
        return value

    ended = []
    from_callback(lambda loop, runner: [start(runner, waits(5 - value, value), ended) for value in range(1, 5)])
    assert sorted((result or 0, type(error).__name__) for result, error in ended) == [
        (0, "KeyError"), (1, "NoneType"), (2, "NoneType"), (4, "NoneType"),
    ]  # fmt: skip


def test_one_that_cancels_itself_is_cancelled_where_it_first_waits():
    seen = []

    async def cancels_itself():
        asyncio.current_task().cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    ended = []
    from_callback(lambda loop, runner: start(runner, cancels_itself(), ended))
    assert seen == ["cancelled"]
    assert [(result, type(error)) for result, error in ended] == [(None, asyncio.CancelledError)]
