# Instructions that every kernel executes in ring 0, one test an entry. The host copies all of it into the
# probe's guest memory, so nothing here may depend on where it lies. A test ends by writing to DONE.
    .set DONE, 0x10
    .set FAULT, 0x11
    .set BEGIN, 0x12

# Global, because the compiler may put this and what refers to it into different objects; hidden from everyone else.
    .macro entry name
    .globl \name
    .hidden \name
\name:
    .endm

    .pushsection .rodata.amphi_probe, "a", @progbits
    .balign 16
    entry amphi_probe_start

    entry amphi_probe_mov_cr3
    mov rax, cr3
    mov cr3, rax
    out DONE, al

    entry amphi_probe_invlpg
    invlpg [rsp]
    out DONE, al

    entry amphi_probe_msr                        # LSTAR: any canonical address is a legal value
    mov ecx, 0xc0000082
    rdmsr
    wrmsr
    out DONE, al

    entry amphi_probe_int3
    int3
    out DONE, al

    entry amphi_probe_popcnt
    popcnt rax, rsp
    out DONE, al

    entry amphi_probe_cmpxchg16b
    and rsp, -16
    lock cmpxchg16b [rsp - 16]
    out DONE, al

    entry amphi_probe_xsave                      # rdi: a page for the state
    xor ecx, ecx
    xor edx, edx
    mov eax, 3
    xsetbv
    xsave [rdi]
    xrstor [rdi]
    out DONE, al

    entry amphi_probe_loop                       # rcx: rounds of two instructions
    out BEGIN, al
2:  dec rcx
    jnz 2b
    out DONE, al

    entry amphi_probe_on_int3
    iretq

    entry amphi_probe_on_fault
    out FAULT, al
    hlt

    entry amphi_probe_end
    .purgem entry
    .popsection
