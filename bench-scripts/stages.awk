# Counts samples of `perf script -F pid,ip,sym` by the stage of a packet's way that each belongs to: SIDE, STAGE and SAMPLES, a line
# each. A stack is a line with the pid, then its frames, the innermost first; the kernel's are named reliably,
# of a program's the first one. Variable: gateway, the pid of the gateway's end.

function stage(leaf, stack) {
    copied = leaf ~ /copy_(from|to)_iter|copy_from_user|copy_to_user|rep_movs|clear_page|memcpy/
    if (stack ~ / tun_(get_user|chr_write_iter) /) {
        if (copied) return "write to the TUN: copy"
        return stack ~ / (netif_receive_skb|__netif_receive_skb|netif_rx|napi_gro|do_softirq|handle_softirqs)/ \
            ? "write to the TUN: the host that receives it" : "write to the TUN: the rest"
    }
    if (stack ~ / (udp|udpv6)_sendmsg /) {
        if (copied) return "send to UDP: copy"
        return stack ~ / (__dev_queue_xmit|dev_hard_start_xmit|do_softirq|handle_softirqs)/ \
            ? "send to UDP: the link" : "send to UDP: the rest"
    }
    if (stack ~ / tun_(do_read|chr_read_iter) /) return copied ? "read from the TUN: copy" : "read from the TUN: the rest"
    if (stack ~ / (udp|udpv6)_recvmsg /) return copied ? "receive from UDP: copy" : "receive from UDP: the rest"
    if (stack ~ / (handle_softirqs|__do_softirq|net_rx_action|asm_sysvec_|sysvec_)/) return "interrupts: receiving for others"
    if (stack ~ / (__do_sys_io_uring_enter|io_uring_enter|io_cqring_wait) /) return "io_uring by itself, waking"
    if (stack ~ / (do_syscall_64|entry_SYSCALL)/) return "other system calls"
    if (kernel) return "the kernel otherwise"
    if (leaf ~ /chacha|poly1305|aes|gcm|aead|lanes|ghash|GFp|ring_core|vaes/) return "seal and open"
    if (leaf ~ /memmove|memcpy|memset/) return "copies in the program"
    if (leaf ~ /split|coalesce|checksum|csum/) return "split, coalesce, checksums"
    return "the program otherwise"
}

function done() {
    if (pid != "") count[(pid == gateway ? "gateway" : "client") "\t" stage(leaf, stack)]++
    pid = leaf = stack = ""
}

/^ *[0-9]+ *$/ { done(); pid = $1; kernel = 0; next }
NF >= 2 {
    if (leaf == "") { leaf = $2; kernel = $1 ~ /^ffff/ }
    # A generic name has more words; the first is enough.
    stack = stack " " $2 " "
}
END { done(); for (key in count) print key "\t" count[key] }
