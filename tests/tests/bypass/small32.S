# A 32-bit program without a library: mkdir(argv[1], 0755).
    .globl _start
_start:
    movl $39, %eax
    movl 8(%esp), %ebx
    movl $0755, %ecx
    int $0x80
    movl %eax, %ebx
    negl %ebx
    movl $1, %eax
    int $0x80
    .section .note.GNU-stack,"",@progbits
