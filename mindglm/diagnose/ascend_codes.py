"""Numbers and names of Ascend errors, and what kind of trouble each is.

Sources, read 2026-11: CANN's aclError page (hiascend.com, CANN 9.1 runtime API, "aclError") and its header
rt_error_codes.h; HCCL's error codes EI0001 to EI0020 and EJ0003 (CANN 9.0, HCCL user guide, "HCCL Errors"); MindSpore's
forum on 507011 with an event-wait time-out (discuss.mindspore.cn/t/topic/1156).
"""

RUNTIME: dict[int, tuple[str, str]] = {
    107001: ("no_device", "invalid device id"),
    107019: ("stream_wait", "a wait timed out"),
    107020: ("stream_wait", "a task timed out"),
    207001: ("device_memory", "memory allocation failed"),
    207004: ("no_device", "no device"),
    207018: ("device_memory", "device out of memory"),
    507010: ("device_fault", "the task scheduler of the device lost its heartbeat"),
    507011: ("stream_wait", "execution of a model's stream failed; with an event wait inside it is a time-out"),
    507012: ("stream_wait", "a report timed out"),
    507013: ("device_fault", "system DMA error"),
    507014: ("kernel_time_out", "an AI Core kernel timed out"),
    507015: ("kernel_fault", "AI Core exception"),
    507016: ("kernel_fault", "AI Core trap exception"),
    507017: ("kernel_time_out", "an AI CPU kernel timed out"),
    507018: ("kernel_fault", "AI CPU exception"),
    507033: ("no_device", "device set-up error"),
    507034: ("kernel_time_out", "a vector core kernel timed out"),
    507035: ("kernel_fault", "vector core exception"),
    507036: ("kernel_fault", "vector core trap exception"),
    507042: ("kernel_fault", "AI Core read out of bounds"),
    507043: ("kernel_fault", "AI Core write out of bounds"),
    507044: ("kernel_fault", "vector core read out of bounds"),
    507045: ("kernel_fault", "vector core write out of bounds"),
    507046: ("stream_wait", "synchronising a stream timed out"),
    507047: ("stream_wait", "synchronising an event timed out"),
    507048: ("stream_wait", "a scheduled task (FFTS+) timed out"),
    507049: ("kernel_fault", "a scheduled task (FFTS+) raised an exception"),
    507050: ("kernel_fault", "a scheduled task (FFTS+) trapped"),
    507053: ("device_fault", "device memory error"),
    507054: ("device_fault", "multi-bit ECC error of the device memory (HBM)"),
    507055: ("device_fault", "suspected device memory error"),
    507056: ("link_fault", "link error"),
    507057: ("link_fault", "suspected error of a remote device"),
    507899: ("device_fault", "driver internal error"),
    507904: ("link_fault", "HCCL could not repeat a failed operation"),
}
"""ACL return code -> (key of the cause in mindglm.diagnose.causes, meaning)."""

HCCL: dict[str, tuple[str, str]] = {
    "EI0001": ("hccl_variable", "an HCCL environment variable is invalid"),
    "EI0002": ("notify_wait", "a collective waited too long for another rank"),
    "EI0003": ("different_calls", "a collective was called with an invalid argument"),
    "EI0004": ("rank_table", "the rank table cannot be read"),
    "EI0005": ("different_calls", "ranks called a collective with different arguments"),
    "EI0006": ("socket_wait", "the connection to another rank timed out"),
    "EI0007": ("device_memory", "HCCL could not get a resource (memory, stream, notify)"),
    "EI0008": ("cann_versions", "ranks run different versions of CANN's HCCL"),
    "EI0009": ("link_fault", "the transport between two devices could not be set up"),
    "EI0010": ("link_fault", "peer-to-peer communication between two devices failed"),
    "EI0011": ("device_memory", "too little device memory for HCCL's buffers"),
    "EI0012": ("link_fault", "an SDMA copy failed"),
    "EI0013": ("link_fault", "RoCE reported a completion error (CQE): packets are lost"),
    "EI0014": ("rank_table", "the rank table contradicts the machines"),
    "EI0015": ("agents_wait", "not all ranks reported to the root of the group"),
    "EI0016": ("hccl_variable", "the HCCL configuration is invalid"),
    "EI0017": ("rank_table", "the rank table is invalid"),
    "EI0019": ("port_busy", "HCCL's port is already bound"),
    "EI0020": ("port_busy", "HCCL's port on the network card is already bound"),
    "EJ0003": ("port_busy", "HCCL's address and port are already bound"),
    "EL0004": ("device_memory", "device memory could not be allocated"),
    "EE1002": ("stream_wait", "synchronising a stream timed out"),
}
"""CANN error code -> (key of the cause in mindglm.diagnose.causes, meaning)."""
