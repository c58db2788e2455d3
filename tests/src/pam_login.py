"""Does with PAM what login(1) does, and says what each phase answered: SERVICE USER TTY PASSWORD."""
import ctypes
import sys

service, user, tty, password = (argument.encode() for argument in sys.argv[1:])
pam = ctypes.CDLL("libpam.so.0")
libc = ctypes.CDLL("libc.so.6")
libc.calloc.restype = libc.strdup.restype = ctypes.c_void_p


class Message(ctypes.Structure):
    _fields_ = [("style", ctypes.c_int), ("text", ctypes.c_char_p)]


class Response(ctypes.Structure):
    _fields_ = [("text", ctypes.c_void_p), ("code", ctypes.c_int)]


CONVERSE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_int,
    ctypes.POINTER(ctypes.POINTER(Message)),
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)


class Conversation(ctypes.Structure):
    _fields_ = [("function", CONVERSE), ("data", ctypes.c_void_p)]


@CONVERSE
def converse(count, messages, answers, _):
    array = libc.calloc(count, ctypes.sizeof(Response))
    responses = ctypes.cast(array, ctypes.POINTER(Response))
    for index in range(count):
        if messages[index].contents.style in (1, 2):
            responses[index].text = libc.strdup(password)
    answers[0] = array
    return 0


handle = ctypes.c_void_p()
conversation = Conversation(converse, None)
if pam.pam_start(service, user, ctypes.byref(conversation), ctypes.byref(handle)) != 0:
    sys.exit("pam_start failed")
PAM_TTY = 3
pam.pam_set_item(handle, PAM_TTY, tty)
for name, phase in (("auth", pam.pam_authenticate), ("account", pam.pam_acct_mgmt), ("session", pam.pam_open_session)):
    print(name, "yes" if phase(handle, 0) == 0 else "no", flush=True)
pam.pam_close_session(handle, 0)
pam.pam_end(handle, 0)
